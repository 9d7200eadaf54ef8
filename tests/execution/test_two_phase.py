"""Rules that move a tensor by its norms: one result, whatever measures and in how many parts."""

from __future__ import annotations

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import Parameter
from lucid_gpu.device import transfer
from lucid_gpu.execution import sums, twin
from lucid_gpu.gradients import clip_grad_norm_
from lucid_gpu.optim import LAMB, LARS
from lucid_gpu.optim.core.fused import FRAME_DEFAULTS
from tests.conftest import installed
from tests.emulation.machine import Record
from tests.oracle import ORACLES
from tests.stepping import Tensor, bits, place, steps

SIZE = 257 * 4096 + 3
"""More chunks than a page has."""

every_rule = pytest.mark.parametrize("rule", [LAMB, LARS], ids=lambda rule: rule.__name__)


@pytest.fixture
def compiled():
    lucid_gpu.set_cpu_code("compiled")
    yield
    lucid_gpu.set_cpu_code(None)


def large(rng, dtype="float32"):
    values, *grads = rng.normal(size=(3, SIZE)).astype(dtype)
    return Tensor(values, grads)


def one_by_one(values):
    """The sum of squares in the order that is documented, with plain loops."""
    chunks = []
    for start in range(0, len(values), 4096):
        lanes = [0.0] * 256
        for e, x in enumerate(values[start : start + 4096].tolist()):
            lanes[e // 4 % 256] += x * x
        chunks.append(tree(lanes))
    while len(chunks) > 1:
        chunks = [folded(chunks[i : i + 256]) for i in range(0, len(chunks), 256)]
    return chunks[0]


def folded(values):
    lanes = [0.0] * 256
    for i, value in enumerate(values):
        lanes[i % 256] += value
    return tree(lanes) if len(values) > 1 else values[0]


def tree(lanes):
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [a + b for a, b in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


def test_squares_are_added_in_the_documented_order(rng):
    values = rng.normal(size=SIZE)
    chunks = np.zeros((258, 4096))
    chunks.reshape(-1)[:SIZE] = values
    plan = sums.plan_sums([SIZE], [values.dtype])
    (total,) = sums.fold(sums.fold(sums.of_squares(chunks), plan.pages), plan.tensors)
    assert total == one_by_one(values)


@every_rule
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_tensor_steps_to_the_bit_on_a_gpu(rule, dtype, accelerator, rng):
    groups = [({}, [large(rng, dtype)])]
    for ours, twins in zip(
        steps(rule, groups, accelerator), steps(rule, groups, "cpu"), strict=True
    ):
        for one, other in zip(ours, twins, strict=True):
            np.testing.assert_array_equal(one, other)


@every_rule
def test_a_large_tensor_steps_to_the_bit_in_compiled_code(rule, rng, request):
    groups = [({}, [large(rng), Tensor(*small(rng), ("F", "C"))])]
    expected = steps(rule, groups, "cpu")
    request.getfixturevalue("compiled")
    for ours, twins in zip(steps(rule, groups, "cpu"), expected, strict=True):
        for one, other in zip(ours, twins, strict=True):
            np.testing.assert_array_equal(one, other)


def small(rng):
    values, *grads = rng.normal(size=(3, 90, 60)).astype("float32")
    return values, grads


@every_rule
@pytest.mark.parametrize("threads", ["1", "3"])
def test_neither_threads_nor_blocks_matter(rule, threads, rng, monkeypatch):
    groups = [({}, [large(rng)])]
    expected = steps(rule, groups, "cpu")[-1]
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", threads)
    monkeypatch.setattr(twin, "BLOCK_ELEMENTS", 4096 * 3)
    for one, other in zip(steps(rule, groups, "cpu")[-1], expected, strict=True):
        np.testing.assert_array_equal(one, other)


@every_rule
@pytest.mark.parametrize("layout", ["F", "strided", "reversed", 1])
def test_norms_do_not_depend_on_the_layout(rule, layout, device, rng):
    values, grads = small(rng)
    plain = steps(rule, [({}, [Tensor(values, grads)])], device)[-1]
    laid_out = steps(rule, [({}, [Tensor(values, grads, (layout,))])], device)[-1]
    for one, other in zip(laid_out, plain, strict=True):
        np.testing.assert_array_equal(one, other)


@every_rule
def test_norms_are_of_each_tensor_alone(rule, device, rng):
    own = [Tensor(*small(rng)), Tensor(*small(rng))]
    together = steps(rule, [({}, own)], device)[-1]
    for number, tensor in enumerate(own):
        (alone, *_) = steps(rule, [({}, [tensor])], device)[-1]
        np.testing.assert_array_equal(together[number], alone)


@every_rule
def test_a_tensor_of_thousands_of_elements_agrees_with_the_textbook(rule, device, rng):
    values, *grads = rng.normal(size=(3, 9001))
    options = {"weight_decay": 0.1, "lr": 0.1}
    param = Parameter(place(values, device).view)
    optimizer = rule([param], **options)
    oracle = ORACLES[rule.__name__]
    group = {name: optimizer.param_groups[0][name] for name in optimizer.defaults}
    known = {n: v for n, v in group.items() if n == "maximize" or n not in FRAME_DEFAULTS}
    expected = oracle(values.tolist(), [grad.tolist() for grad in grads], **known)
    for grad, wanted in zip(grads, expected, strict=True):
        param.grad = place(grad, device).view
        optimizer.step()
        np.testing.assert_allclose(param.numpy(), wanted, rtol=1e-10, atol=1e-12)


@every_rule
def test_zeros_step_without_a_ratio(rule, device):
    for values, grad in ((np.zeros(3), np.ones(3)), (np.ones(3), np.zeros(3))):
        param = Parameter(place(values, device).view)
        param.grad = place(grad, device).view
        rule([param], lr=0.5, weight_decay=0.0).step()
        assert np.isfinite(param.numpy()).all()
        assert (param.numpy() == values).all() == (grad == 0).all()


@every_rule
def test_a_tensor_along_strides_has_two_launches_of_its_own(rule, emulated):
    array = transfer.copy(np.ones((4, 6), np.float32), "cuda:0").T
    param = Parameter(array)
    param.grad = array
    optimizer = rule([param])
    optimizer.step()
    emulated.record = Record()
    optimizer.step()
    assert len(emulated.record.launches) == 2


@every_rule
@pytest.mark.parametrize("seed", range(2))
def test_whichever_block_comes_last_folds_to_the_same_bits(rule, seed, emulated, rng, monkeypatch):
    tensors = [large(rng), Tensor(*small(rng)), Tensor(*small(rng), ("strided",))]
    expected = steps(rule, [({}, tensors)], "cpu")
    monkeypatch.setenv("EMULATION_BLOCK_ORDER", str(seed))
    for ours, twins in zip(steps(rule, [({}, tensors)], "cuda:0"), expected, strict=True):
        for one, other in zip(ours, twins, strict=True):
            np.testing.assert_array_equal(one, other)


@every_rule
def test_a_gradient_that_comes_and_goes_leaves_no_fold_half_done(rule, device, rng):
    values, grads = rng.normal(size=(3, 9001)), rng.normal(size=(5, 3, 9001))
    params = [Parameter(place(own, device).view) for own in values]
    twins = [Parameter(own.copy()) for own in values]
    for optimizer, own in ((rule(params), params), (rule(twins), twins)):
        for turn, step_grads in enumerate(grads):
            for number, (param, grad) in enumerate(zip(own, step_grads, strict=True)):
                is_there = (turn + number) % 3
                param.grad = place(grad, param.device).view if is_there else None
            optimizer.step()
    for param, other in zip(params, twins, strict=True):
        np.testing.assert_array_equal(bits(param.data), bits(other.data))


@every_rule
def test_a_step_allocates_and_compiles_nothing(rule, emulated):
    param = Parameter(np.ones(9001, np.float32), device="cuda:0")
    param.grad = transfer.copy(np.ones(9001, np.float32), "cuda:0")
    optimizer = rule([param])
    optimizer.step()
    emulated.record = Record()
    optimizer.step()
    assert emulated.record.compiles == []
    assert len(emulated.record.launches) == 2


@pytest.mark.parametrize("home", ["cpu", "cuda:0"])
def test_explain_tells_of_both_phases(home, capsys, emulated):
    param = Parameter(np.ones((70, 100), np.float32), device=home)
    param.grad = transfer.copy(np.ones((70, 100), np.float32), home)
    LAMB([param]).explain()
    text = capsys.readouterr().out
    assert "40 bytes moved per element in 1 tensors" in text
    if home != "cpu":
        assert "2 launches of 2 blocks for 1 contiguous tensors" in text
        LAMB([param], state_device="host").explain()
        text = capsys.readouterr().out
        assert "2 launches for each 32 MiB of slots for 1 contiguous tensors" in text
        assert "of which 16 come from the host, and as many return" in text


@pytest.mark.usefixtures("emulated")
def test_explain_tells_that_fortran_order_is_slow_to_a_norm(capsys):
    param = Parameter(transfer.copy(np.ones((7, 5), np.float32), "cuda:0").T)
    param.grad = transfer.copy(np.ones((7, 5), np.float32), "cuda:0").T
    LARS([param]).explain()
    text = capsys.readouterr().out
    assert "1 tensors are not contiguous, 2 launches each:" in text
    assert "the parameter has strides (4, 20)" in text


def test_lars_without_a_trust_coefficient_is_momentum(device, rng):
    values, grads = small(rng)
    tensors = [Tensor(values, grads)]
    options = {"lr": 0.1, "momentum": 0.9}
    ours = steps(LARS, [({**options, "trust_coefficient": None}, tensors)], device)[-1]
    plain = steps(lucid_gpu.optim.SGD, [(options, tensors)], device)[-1]
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_array_equal(one, other)


def test_groups_with_and_without_a_ratio_step_together(device, rng):
    own = [Tensor(*small(rng)), Tensor(*small(rng))]
    options = [{"lr": 0.1}, {"lr": 0.1, "trust_coefficient": None}]
    together = steps(LARS, [(each, [one]) for each, one in zip(options, own, strict=True)], device)[
        -1
    ]
    for number, (each, one) in enumerate(zip(options, own, strict=True)):
        (alone, *_) = steps(LARS, [(each, [one])], device)[-1]
        np.testing.assert_array_equal(together[number], alone)


def test_the_norm_of_moments_in_bfloat16_is_of_what_was_computed(device):
    values = np.linspace(1, 2, 5, dtype=np.float32)
    results = []
    for state in (None, "bfloat16"):
        param = Parameter(place(values, device).view)
        param.grad = place(values, device).view
        LAMB([param], lr=0.1, state_dtype=state).step()
        results.append(bits(param.data).view(np.float32))
    np.testing.assert_allclose(*results, rtol=1e-2)
    assert (results[0] != results[1]).any()


@every_rule
@pytest.mark.parametrize("options", [{}, {"max_norm": 0.5}, {"skip_nonfinite": True}], ids=str)
@pytest.mark.parametrize("code", ["compiled", "cuda"])
def test_clipped_and_skipped_steps_are_the_same_everywhere(rule, options, code, rng):
    values, grads = rng.normal(size=(9001,)), rng.normal(size=(5, 9001)).astype("f4")
    grads[2, 7] = np.inf if "skip_nonfinite" in options else 3
    results = []
    for kind in ("cpu", code):
        with installed(kind) as device:
            for layout in ("C", "strided"):
                param = Parameter(place(values.astype("f4"), device, layout).view)
                optimizer = rule([param], lr=0.1, **options)
                for grad in grads:
                    param.grad = place(grad, device).view
                    optimizer.step()
                results.append((bits(param.data), optimizer.state[param]["step"]))
    for found, count in results:
        np.testing.assert_array_equal(found, results[0][0])
        assert count == (4 if "skip_nonfinite" in options else 5)


@every_rule
def test_a_step_that_clips_is_one_with_gradients_that_were_clipped(rule, device, rng):
    values, grad = rng.normal(size=(2, 5000)).astype("f4")
    one, other = (Parameter(place(values, device).view) for _ in range(2))
    for param in (one, other):
        param.grad = place(grad, device).view
    rule([one], max_norm=1.0).step()
    clip_grad_norm_([other], 1.0)
    rule([other]).step()
    np.testing.assert_array_equal(bits(one.data), bits(other.data))
