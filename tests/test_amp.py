"""GradScaler: PyTorch's protocol and numbers, steps that are skipped, and no wait for a GPU."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter, checkpoint
from lucid_gpu.amp import GradScaler
from lucid_gpu.device import gpu, transfer
from lucid_gpu.optim import SGD, Adafactor, AdamW, Muon
from tests import rules

DEVICES = ["cpu", "cuda:0"]
every_device = pytest.mark.parametrize("device", DEVICES)
pytestmark = pytest.mark.usefixtures("emulated")

GOLDEN = [
    (found, scale, tracker)
    for found, scale, tracker in zip(
        (0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 0),
        (8, 8, 16, 16, 8, 8, 8, 16, 8, 4, 4),
        (1, 2, 0, 1, 0, 1, 2, 0, 0, 0, 1),
        strict=True,
    )
]
"""Of PyTorch 2.13: whether elements were not finite, scale and tracker after the update."""


def parameter(device, dtype=np.float16, size=3):
    return Parameter(np.ones(size, dtype), name="w", device=device)


def set_gradient(param, values):
    param.grad = transfer.copy(np.asarray(values, param.dtype), param.device)


def gradient(scaler, bad=False, size=3):
    scale = float(transfer.to(scaler.scale(1.0).reshape(1), "cpu")[0])
    return np.full(size, np.inf if bad else 0.5 * scale)


@every_device
@pytest.mark.parametrize("explicit", [False, True])
def test_the_scale_moves_as_pytorchs(device, explicit):
    param = parameter(device, np.float32)
    scaler = GradScaler(device, init_scale=8.0, growth_interval=3)
    optimizer = SGD([param], lr=0.1)
    for found, scale, tracker in GOLDEN:
        set_gradient(param, gradient(scaler, found))
        if explicit:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        state = scaler.state_dict()
        assert (state["scale"], state["_growth_tracker"]) == (scale, tracker)
    assert optimizer.skipped == 3


@every_device
def test_what_overflows_only_where_it_is_divided_is_not_looked_at_as_in_pytorch(device):
    torch = pytest.importorskip("torch")
    tensor = torch.nn.Parameter(torch.zeros(3))
    theirs = torch.amp.GradScaler("cpu", init_scale=0.5)
    theirs.scale(torch.ones(1))
    tensor.grad = torch.full((3,), 3e38)
    theirs.step(torch.optim.SGD([tensor], lr=1.0))
    param = parameter(device, np.float32)
    param.data = param.data * 0
    scaler, optimizer = GradScaler(device, init_scale=0.5), SGD([param], lr=1.0)
    scaler.scale(1.0)
    set_gradient(param, np.full(3, 3e38))
    scaler.step(optimizer)
    assert param.numpy().tolist() == tensor.tolist() == [-math.inf] * 3
    assert optimizer.skipped == 0


@every_device
def test_a_scale_that_would_overflow_does_not_grow(device):
    param = parameter(device, np.float32)
    scaler = GradScaler(device, init_scale=2.0**127, growth_interval=1)
    optimizer = SGD([param], lr=0.1)
    scaler.scale(1.0)
    set_gradient(param, [1, 1, 1])
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**127


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.sampled_from(DEVICES))
def test_a_run_with_skips_equals_one_without_those_steps(bad, device):
    torch = pytest.importorskip("torch")
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    tensor = torch.nn.Parameter(torch.ones(3))
    peer = torch.optim.SGD([tensor], lr=0.1)
    ours, plain = parameter(device, np.float32), parameter(device, np.float32)
    scaler = GradScaler(device, init_scale=8.0, growth_interval=3)
    optimizer, reference = AdamW([ours]), AdamW([plain])
    for step, is_bad in enumerate(bad):
        own = np.random.default_rng(step).normal(size=3).astype(np.float32)
        scale = transfer.to(scaler.scale(np.ones(1, np.float32)), "cpu")[0]
        set_gradient(ours, np.full(3, np.nan) if is_bad else own * scale)
        theirs.scale(torch.ones(1))
        tensor.grad = torch.full((3,), math.nan) if is_bad else torch.ones(3)
        scaler.step(optimizer)
        scaler.update()
        theirs.step(peer)
        theirs.update()
        if not is_bad:
            set_gradient(plain, own)
            reference.step()
        assert scaler.get_scale() == theirs.get_scale()
    assert ours.numpy().tobytes() == plain.numpy().tobytes()
    assert optimizer.skipped == sum(bad)
    for name, value in reference.state_dict("cpu")["state"].get(0, {}).items():
        np.testing.assert_array_equal(optimizer.state_dict("cpu")["state"][0][name], value)


@pytest.mark.parametrize("kind", rules.optimizers(), ids=lambda kind: kind.__name__)
@every_device
def test_a_skipped_step_changes_nothing_in_any_rule(kind, device):
    results = []
    for skips in (False, True):
        param = parameter(device, np.float16, 300)
        optimizer, scaler = kind([param]), GradScaler(device, init_scale=4.0)
        for step in range(4):
            scaler.scale(1.0)
            if skips:
                set_gradient(param, np.full(300, np.inf))
                scaler.step(optimizer)
                scaler.update(4.0)
            set_gradient(param, 4 * np.random.default_rng(step).normal(size=300))
            scaler.step(optimizer)
            scaler.update(4.0)
        state = optimizer.state_dict("cpu")["state"][0]
        results.append(
            {"data": param.numpy().tobytes()}
            | {k: np.asarray(v).tobytes() for k, v in state.items()}
        )
    assert results[0] == results[1]


def test_steps_wait_for_no_outcome(emulated):
    param = parameter("cuda:0")
    scaler, optimizer = GradScaler("cuda:0"), SGD([param], lr=0.1)
    for _ in range(3):
        scaler.scale(1.0)
        set_gradient(param, [1, 1, 1])
        scaler.step(optimizer)
        scaler.update()
    emulated.lazy = True
    try:
        before = emulated.record.synchronizations
        for _ in range(8):
            scaler.scale(1.0)
            scaler.step(optimizer)
            scaler.update()
        assert emulated.record.synchronizations == before
    finally:
        emulated.lazy = False


@every_device
def test_float16_gradients_are_divided_in_float32(device):
    param = parameter(device)
    scaler, optimizer = GradScaler(device, init_scale=2.0**14), SGD([param], lr=2.0**20)
    scaler.scale(1.0)
    set_gradient(param, np.full(3, 2.0**-10))  # divided in float16 it would be 0
    scaler.step(optimizer)
    assert transfer.to(optimizer.state[param]["master"], "cpu").tolist() == [1 - 2.0**-4] * 3


@every_device
@pytest.mark.parametrize("kind", [Adafactor, Muon])
def test_float16_gradients_are_divided_in_float32_in_array_code_too(device, kind):
    own, other = (
        Parameter(np.ones((2, 3), np.float16), device=device, grad_dtype=dtype)
        for dtype in ("float16", "float32")
    )
    scaler, ours, plain = GradScaler(device, init_scale=2.0**14), kind([own]), kind([other])
    small = np.linspace(1, 2, 6).reshape(2, 3) * 2.0**-10  # divided in float16 it would be 0
    for factor in (1.0, math.inf, -2.0):
        scaler.scale(1.0)
        scale = scaler.get_scale()
        own.grad = transfer.to((small * factor).astype(np.float16), device)
        given = transfer.to(own.grad, "cpu").copy()
        scaler.step(ours)
        scaler.update()
        assert transfer.to(own.grad, "cpu").tobytes() == given.tobytes()
        if math.isfinite(factor):
            other.grad = transfer.to(given.astype(np.float32) / np.float32(scale), device)
            plain.step()
    assert scaler.get_scale() == 2.0**13
    assert ours.state[own]["step"] == 2
    exact = [transfer.to(o.state[p]["master"], "cpu") for o, p in ((ours, own), (plain, other))]
    assert exact[0].tobytes() == exact[1].tobytes()


@every_device
def test_clipping_sees_unscaled_gradients(device):
    param = parameter(device, np.float32, 2)
    scaler = GradScaler(device, init_scale=4.0)
    optimizer = SGD([param], lr=1.0, max_norm=1.0)
    scaler.scale(1.0)
    set_gradient(param, [12.0, 16.0])
    scaler.step(optimizer)
    assert optimizer.skipped == 0
    assert optimizer.last.norm == 5.0
    np.testing.assert_allclose(param.numpy(), [0.4, 0.2], rtol=1e-5)


@every_device
def test_several_optimizers_share_a_scale(device):
    params = [parameter(device, np.float32) for _ in range(2)]
    optimizers = [SGD([param], lr=0.5) for param in params]
    scaler = GradScaler(device, init_scale=4.0)
    scaler.scale(1.0)
    set_gradient(params[0], [4, 4, 4])
    set_gradient(params[1], [4, math.inf, 4])
    for optimizer in optimizers:
        scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert [optimizer.skipped for optimizer in optimizers] == [0, 1]
    assert params[0].numpy().tolist() == [0.5] * 3


def test_what_is_scaled_keeps_its_dtype_and_device():
    xp = gpu.module("cuda")
    scaler = GradScaler("cpu", init_scale=4.0)
    seen = scaler.scale([2.0, np.ones(2, np.float16), (xp.ones(2, xp.float32),)])
    assert float(seen[0]) == 8.0
    assert seen[1].dtype == np.float16
    assert seen[1].tolist() == [4.0, 4.0]
    assert seen[2][0].get().tolist() == [4.0, 4.0]


def test_a_disabled_scaler_does_nothing():
    param = parameter("cpu", np.float32)
    scaler, optimizer = GradScaler(enabled=False), SGD([param], lr=1.0)
    assert scaler.scale(3.0) == 3.0
    set_gradient(param, [1, 1, 1])
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert param.numpy().tolist() == [0.0] * 3
    assert (scaler.is_enabled(), scaler.get_scale(), scaler.state_dict()) == (False, 1.0, {})


@every_device
def test_state_is_that_of_pytorch_and_resumes(device, tmp_path):
    torch = pytest.importorskip("torch")
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0)
    theirs.scale(torch.ones(1))
    scaler = GradScaler(device)
    scaler.load_state_dict(theirs.state_dict())
    assert scaler.state_dict() == theirs.state_dict()
    scaler.scale(1.0)
    checkpoint.save(tmp_path / "run", {"scaler": scaler})
    other = GradScaler(device)
    other.scale(1.0)
    checkpoint.load(tmp_path / "run", into={"scaler": other})
    assert other.state_dict() == scaler.state_dict()


def ready(dtype=np.float32):
    param = parameter("cpu", dtype)
    scaler, optimizer = GradScaler("cpu"), SGD([param], lr=0.1)
    scaler.scale(1.0)
    set_gradient(param, [1, 1, 1])
    return scaler, optimizer, param


def test_unscaling_twice_is_refused():
    scaler, optimizer, _ = ready()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="already been called on this optimizer since the last"):
        scaler.unscale_(optimizer)


def test_unscaling_after_the_step_is_refused():
    scaler, optimizer, _ = ready()
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="being called after step"):
        scaler.unscale_(optimizer)


def test_stepping_twice_is_refused():
    scaler, optimizer, _ = ready()
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="already been called since the last update"):
        scaler.step(optimizer)


def test_a_closure_is_refused():
    scaler, optimizer, _ = ready()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, lambda: 0.0)


def test_a_step_without_gradients_is_refused():
    scaler, optimizer, param = ready()
    param.grad = None
    with pytest.raises(AssertionError, match="No inf checks were recorded for this optimizer"):
        scaler.step(optimizer)


def test_an_update_without_a_step_is_refused():
    scaler, _, _ = ready()
    with pytest.raises(AssertionError, match="No inf checks were recorded prior to update"):
        scaler.update()


@pytest.mark.parametrize("what", ["unscale_", "step", "update"])
def test_nothing_happens_before_something_was_scaled(what):
    _, optimizer, _ = ready()
    scaler = GradScaler("cpu")
    with pytest.raises(RuntimeError, match=f"Attempted {what} but the scale is None"):
        getattr(scaler, what)(*([] if what == "update" else [optimizer]))


def test_float16_gradients_are_not_unscaled_in_place():
    scaler, optimizer, param = ready(np.float16)
    with pytest.raises(ValueError, match="unscale FP16 gradients, of"):
        scaler.unscale_(optimizer)
    assert param.grad.tolist() == [1.0] * 3


def test_an_empty_state_is_refused():
    with pytest.raises(RuntimeError, match="source state dict is empty"):
        GradScaler("cpu").load_state_dict({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"growth_factor": 1.0}, "growth_factor must be > 1, not 1.0"),
        ({"backoff_factor": 1.0}, "backoff_factor must be > 0 and < 1, not 1.0"),
        ({"init_scale": 0.0}, "init_scale must be > 0"),
        ({"init_scale": math.nan}, "init_scale must be finite"),
        ({"init_scale": 1e39}, "init_scale must be > 0 and a float32"),
        ({"growth_interval": 0}, "growth_interval must be >= 1"),
        ({"enabled": 1}, "enabled must be one of False, True, not 1"),
    ],
)
def test_what_is_out_of_bounds_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GradScaler("cpu", **options)
