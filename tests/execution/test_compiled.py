"""Compiled code for the CPU: the same bits as NumPy, and NumPy wherever there is none."""

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.execution import compiled, cpu
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.stepping import Tensor, steps


@pytest.fixture
def asked(monkeypatch):
    """Ask for compiled code."""
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")


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
def test_compiled_code_agrees_with_numpy_to_the_bit(case, dtype, monkeypatch):
    groups = [(case.options, [extreme(dtype)])]
    expected = steps(case.rule, groups, "cpu")
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")
    for ours, theirs in zip(steps(case.rule, groups, "cpu"), expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


def trained(dtype=np.float32, shapes=((70000,), (5,), (), (3, 4), (0,))):
    """Return what is left of some parameters after some steps of Adam."""
    draw = np.random.default_rng(2)
    params = [Parameter(draw.standard_normal(shape).astype(dtype)) for shape in shapes]
    optimizer = Adam(params)
    for _ in range(3):
        for param in params:
            param.grad = draw.standard_normal(param.shape).astype(dtype)
        optimizer.step()
    return b"".join(param.numpy().tobytes() for param in params)


@pytest.mark.parametrize("dtype", rules.DTYPES)
def test_a_trained_model_is_the_same_to_the_bit(dtype, monkeypatch):
    expected = trained(dtype)
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")
    assert trained(dtype) == expected


@pytest.mark.parametrize(
    ("elements", "expected"), [(500, 64), (16 * 100, 100), (16 * 999, 999), (10**9, 1000)]
)
def test_blocks_of_compiled_code_are_large_but_not_few(monkeypatch, elements, expected):
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(cpu, "COMPILED_ELEMENTS", 1000)
    assert cpu.elements_of_a_flat_block(elements) == 64
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")
    assert cpu.elements_of_a_flat_block(elements) == expected


@pytest.mark.parametrize("offset", [0, 1])
def test_blocks_larger_than_scratch_are_the_same_to_the_bit_aligned_or_not(monkeypatch, offset):
    def stepped():
        memory = np.zeros(4 * 70_000 + offset, np.uint8)
        param = Parameter(memory[offset:].view(np.float32))
        param.grad = np.linspace(-1, 1, 70_000, dtype=np.float32)
        optimizer = Adam([param])
        optimizer.step()
        optimizer.step()
        return param.numpy().tobytes()

    expected = stepped()
    monkeypatch.setenv("LUCID_GPU_CPU", "compiled")
    monkeypatch.setattr(cpu, "FEWEST_BLOCKS", 1)
    monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 1 << 10)
    assert stepped() == expected


def test_it_is_not_used_unless_asked_for():
    assert compiled.compiled_update(Adam.rule, Adam.Variant(False), np.dtype("f4")) is None


@pytest.mark.usefixtures("asked")
def test_without_a_compiler_the_error_says_what_to_do_and_nothing_steps(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    compiled._compiled.cache_clear()
    param = Parameter([1.0])
    param.grad = param.data.copy()
    optimizer = SGD([param], momentum=0.9)
    with pytest.raises(RuntimeError, match=r"no C\+\+ compiler was found: install g\+\+"):
        optimizer.step()
    assert param.data.tolist() == [1.0]
    assert len(optimizer.state) == 0


@pytest.mark.usefixtures("asked")
def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\ncat > /dev/null; echo out of sorts >&2; exit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    compiled._compiled.cache_clear()
    with pytest.raises(RuntimeError, match="out of sorts"):
        trained()


def test_an_unknown_mode_is_an_error_that_lists_the_known(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_CPU", "fast")
    with pytest.raises(ValueError, match="numpy, compiled, not 'fast'"):
        trained()


@pytest.mark.usefixtures("asked")
def test_elements_that_are_not_aligned_are_left_to_numpy():
    param = Parameter(np.zeros(401, np.uint8)[1:].view(np.float32))
    param.grad = np.ones(100, np.float32)
    SGD([param], lr=0.5).step()
    assert param.data.tolist() == [-0.5] * 100


@pytest.mark.usefixtures("asked")
def test_blocks_of_strided_arrays_are_left_to_numpy():
    whole = np.zeros((6, 8), np.float32)
    param = Parameter(whole[::2, ::2])
    param.grad = np.ones((3, 4), np.float32)
    SGD([param], lr=0.5).step()
    assert whole.sum() == -0.5 * 12
    assert (whole[::2, ::2] == -0.5).all()
