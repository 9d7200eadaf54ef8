"""Compiled code for the CPU: the same bits as NumPy, and next to nothing per tensor in Python."""

import sys

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import Parameter
from lucid_gpu.device import gradient_table
from lucid_gpu.device.arrays import address, contiguity
from lucid_gpu.execution import building, compiled, threads
from lucid_gpu.execution.compiled import CompiledStep
from lucid_gpu.execution.plan import TensorGroup
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.stepping import Tensor, steps


@pytest.fixture(autouse=True)
def asked():
    """Ask for compiled code."""
    lucid_gpu.set_cpu_code("compiled")
    yield
    lucid_gpu.set_cpu_code(None)


def with_numpy(function, *arguments):
    """Call a function while NumPy steps."""
    lucid_gpu.set_cpu_code("numpy")
    try:
        return function(*arguments)
    finally:
        lucid_gpu.set_cpu_code("compiled")


def extreme(dtype, count=1003):
    """A tensor with zeros, infinities and denormal numbers in its values and gradients."""
    values, *grads = np.random.default_rng(1).standard_normal((4, count)).astype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    values[:5] = 0, np.inf, -np.inf, tiny, -0.0
    for grad in grads:
        grad[2:8] = 0, -0.0, tiny, np.inf, -tiny, np.nan
    return Tensor(values, grads, ("C", "C"))


@pytest.mark.parametrize("dtype", rules.DTYPES)
@pytest.mark.parametrize("case", rules.cases(), ids=lambda case: case.label)
def test_it_agrees_with_numpy_to_the_bit(case, dtype):
    groups = [(case.options, [extreme(dtype)])]
    expected = with_numpy(steps, case.rule, groups, "cpu")
    for ours, theirs in zip(steps(case.rule, groups, "cpu"), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
def test_all_variants_step_together(rule, rng):
    groups = [
        (sets[-1], [Tensor(own[0], list(own[1:])) for own in rng.normal(size=(2, 4, 5))])
        for sets in rules.option_sets(rule).values()
    ]
    expected = with_numpy(steps, rule, groups, "cpu")
    for ours, theirs in zip(steps(rule, groups, "cpu"), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


SHAPES = [(70_000,), (5,), (), (3, 4), (0,), *[(1000,)] * 40]


def trained(dtype=np.float32, groups=1):
    """Return the bytes of some parameters after some steps of Adam."""
    draw = np.random.default_rng(2)
    params = [Parameter(draw.standard_normal(shape).astype(dtype)) for shape in SHAPES]
    optimizer = Adam([{"params": params[g::groups], "lr": 0.1 + g} for g in range(groups)])
    for _ in range(3):
        for param in params:
            param.grad = draw.standard_normal(param.shape).astype(dtype)
        optimizer.step()
    return b"".join(param.numpy().tobytes() for param in params)


@pytest.mark.parametrize("dtype", rules.DTYPES)
@pytest.mark.parametrize("groups", [1, 9])
def test_a_trained_model_is_the_same_to_the_bit(dtype, groups):
    assert trained(dtype, groups) == with_numpy(trained, dtype, groups)


@pytest.mark.parametrize(("chunk", "share"), [(1, 1), (7, 100), (1000, 1)])
@pytest.mark.parametrize("count", ["1", "2", "5"])
def test_chunks_shares_and_threads_do_not_show_in_the_bits(monkeypatch, chunk, share, count):
    expected = with_numpy(trained)
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", count)
    monkeypatch.setattr(compiled, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(compiled, "SHARE_ELEMENTS", share)
    monkeypatch.setattr(compiled, "THREAD_ELEMENTS", 1)
    assert trained() == expected


def test_as_many_threads_step_as_there_is_work_for(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "3")
    monkeypatch.setattr(compiled, "CHUNK_ELEMENTS", 100)
    monkeypatch.setattr(compiled, "SHARE_ELEMENTS", 100)
    monkeypatch.setattr(compiled, "THREAD_ELEMENTS", 1000)
    counts = []
    together = threads.together

    def noting(count, *arguments):
        counts.append(count)
        together(count, *arguments)

    monkeypatch.setattr(threads, "together", noting)
    for elements in (10, 1999, 2000, 9000):
        param = Parameter(np.zeros(elements, np.float32))
        param.grad = param.data.copy()
        SGD([param]).step()
    assert counts == [1, 1, 2, 3]


def test_shares_are_whole_chunks_of_about_the_same_size(monkeypatch):
    monkeypatch.setattr(compiled, "SHARE_ELEMENTS", 10)
    counts = np.array([4, 4, 4, 30, 1, 1], np.int32)
    assert compiled._shares(counts).tolist() == [0, 3, 4, 6]
    assert compiled._shares(counts[:0]).tolist() == [0]


def tables(*params):
    """Return the tables of parameters without slots."""
    rule, variant = SGD.rule, SGD.Variant("none")
    arrays = [np.asarray(param) for param in params]
    group = TensorGroup(
        rule, rules.storage(SGD, "float32"), arrays, [()] * len(params), [variant] * len(params)
    )
    return CompiledStep(group, building.finish(compiled.source(group)).library)


def test_it_sees_where_arrays_lie_and_how(tmp_path):
    plain = np.zeros((4, 6), np.float32)
    arrays = [
        plain,
        plain.T,
        plain[1:, ::2],
        plain[2:3],
        np.zeros((), np.float32),
        np.zeros((0, 3), np.float32),
        np.memmap(tmp_path / "file", np.float32, "w+", shape=(3, 2)),
    ]
    step = tables(plain)
    addresses, layouts = step.look(gradient_table.identities([*arrays, None]))
    assert addresses.tolist() == [*map(address, arrays), 0]
    assert layouts.tolist() == [*map(contiguity, arrays), 0]


def test_elements_that_are_not_aligned_fit_nothing():
    plain = np.zeros(100, np.float32)
    shifted = np.zeros(401, np.uint8)[1:].view(np.float32)
    step = tables(plain, plain, shifted)
    fits = step.take_gradients(gradient_table.identities([plain, shifted, plain]))
    assert fits.tolist() == [True, False, False]


def test_gradients_fit_by_a_common_order():
    plain = np.zeros((3, 4), np.float32)
    fortran, strided = np.zeros((3, 4), np.float32, order="F"), np.zeros((3, 8))[:, ::2]
    step = tables(plain, fortran, plain, fortran, plain)
    fits = step.take_gradients(gradient_table.identities([plain, fortran, fortran, strided, None]))
    assert fits.tolist() == [True, True, False, False, False]


def retaken(*grads):
    """Return what a step finds that had gradients in C order and one in Fortran order."""
    plain, fortran = np.zeros((3, 4), np.float32), np.zeros((3, 4), np.float32, order="F")
    step = tables(plain, plain, fortran)
    step.take_gradients(gradient_table.identities([plain, plain.copy(), fortran]))
    return step, step.retake_gradients([*grads])


class Own(np.ndarray):
    """A subclass, which may compute otherwise."""


C = np.ones((3, 4), np.float32)
F = np.asfortranarray(C)


def test_gradients_are_taken_in_place_of_others():
    grads = C, C.copy(), F
    step, found = retaken(*grads)
    assert found == compiled.ALIKE
    assert step._grads.tolist() == [*map(address, grads)]
    assert step.present.all()


def test_a_gradient_that_is_gone_is_told():
    step, found = retaken(C, None, F)
    assert found == compiled.OTHERS_PRESENT
    assert step.present.tolist() == [True, False, True]
    assert step._grads.tolist() == [address(C), 0, address(F)]
    assert step.retake_gradients([C, None, F]) == compiled.ALIKE
    assert step.retake_gradients([C, C, F]) == compiled.OTHERS_PRESENT


@pytest.mark.parametrize(
    "odd",
    [F, np.ones((6, 4), np.float32)[::2], C.view(Own), [1.0], 3],
    ids=["another order", "strided", "a subclass", "a list", "a number"],
)
def test_what_is_no_array_as_before_is_not_taken(odd):
    assert retaken(C, odd, F)[1] == compiled.MISFITS


def calls_of_a_step(tensors):
    """Return how many functions are called from Python in a step whose gradients moved."""
    params = [Parameter(np.zeros(3, np.float32)) for _ in range(tensors)]
    optimizer = Adam(params)
    for number in range(3):
        for param in params:
            param.grad = np.ones(3, np.float32)
        if number == 2:
            params[tensors // 2].grad = None
        optimizer.step()
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    params[0].grad = np.ones(3, np.float32)
    params[tensors // 2].grad = params[0].grad
    sys.setprofile(count)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return calls


def test_python_calls_nothing_for_each_tensor_once_all_have_stepped():
    assert calls_of_a_step(300) == calls_of_a_step(3)
