"""torch.amp.GradScaler: the scale and what it has found go into a step, which skips on its own."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter, amp, optim
from lucid_gpu.gradients import clip_grad_norm_
from tests.torch.support import assert_close, everything, parameters, set_gradients, torch, values

ours = pytest.importorskip("lucid_gpu.torch")
from lucid_gpu.torch import engine  # noqa: E402

SHAPES = (3, 4), (5,)
KINDS = {
    "AdamW": {"lr": 0.1},
    "Adam": {"lr": 0.1, "weight_decay": 0.1, "amsgrad": True},
    "SGD": {"lr": 0.1, "momentum": 0.9},
}


def scaler(**options):
    return torch.amp.GradScaler("cpu", **{"init_scale": 8.0, "growth_interval": 3, **options})


def give(params, own, seed, is_bad):
    """Gradients times the scale, one of them with an infinity."""
    factor = own.scale(torch.tensor(1.0))
    set_gradients(params, seed)
    for param in params:
        param.grad.mul_(factor)
    if is_bad:
        params[-1].grad[-1] = torch.inf


iterations = st.lists(
    st.tuples(st.tuples(st.booleans(), st.booleans()), st.sampled_from([None, "unscale", "clip"])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(iterations, st.sampled_from(sorted(KINDS)))
def test_two_optimizers_of_one_scaler_step_and_skip_as_pytorchs_do(course, kind):
    """Row 30h of docs/contract.md."""
    runs = []
    # PyTorch's fused SGD begins with whatever is in memory if its first step is skipped.
    for library, more in ((ours, {}), (torch.optim, {"fused": kind != "SGD"})):
        models = [parameters(*SHAPES), parameters(*SHAPES, seed=5)]
        optimizers = [getattr(library, kind)(own, **KINDS[kind], **more) for own in models]
        own = scaler()
        for seed, (are_bad, way) in enumerate(course):
            for params, optimizer, is_bad in zip(models, optimizers, are_bad, strict=True):
                give(params, own, seed, is_bad)
                if way is not None:
                    own.unscale_(optimizer)
                if way == "clip":
                    torch.nn.utils.clip_grad_norm_(params, 0.5)
                own.step(optimizer)
            own.update()
        saved = [optimizer.state_dict()["state"] for optimizer in optimizers]
        steps = [[float(slots.get("step", -1)) for slots in each.values()] for each in saved]
        runs.append((own.state_dict(), steps, [*models[0], *models[1]], optimizers))
    (mine, steps, params, optimizers), (theirs, counts, others, _) = runs
    assert mine == theirs
    if kind != "SGD":  # which counts no steps there
        assert [[n for n in each if n] for each in steps] == [[n for n in c if n] for c in counts]
    assert_close(params, others, ulps=16)
    assert [o.skipped for o in optimizers] == [sum(bad[i] for bad, _ in course) for i in (0, 1)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bad", [(), (0,), (2, 3)], ids=str)
def test_halves_step_by_their_masters_as_float32_does_by_unscaled_gradients(dtype, bad):
    halves = parameters(*SHAPES, dtype=dtype)
    exact = [torch.nn.Parameter(param.detach().float()) for param in halves]
    mine, theirs = ours.AdamW(halves, lr=1e-2), torch.optim.AdamW(exact, lr=1e-2)
    own = scaler(init_scale=256.0)
    for step in range(6):
        scale = own.get_scale()
        give(halves, own, step, step in bad)
        for param, half in zip(exact, halves, strict=True):
            param.grad = half.grad.float() / scale
        own.step(mine)
        own.update()
        if step not in bad:
            theirs.step()
    assert_close([mine.state[param]["master"] for param in halves], exact)
    assert [param.tolist() for param in halves] == [param.to(dtype).tolist() for param in exact]
    assert mine.state[halves[0]]["step"] == 6 - len(bad)


@pytest.mark.parametrize("is_unscaled", [False, True])
def test_clipping_inside_the_step_is_that_of_pytorch_between_unscaling_and_stepping(is_unscaled):
    own, theirs = parameters(*SHAPES), parameters(*SHAPES)
    mine, other = ours.AdamW(own, max_norm=0.5), torch.optim.AdamW(theirs)
    pairs = (own, mine, scaler()), (theirs, other, scaler())
    norms = []
    for step in range(5):
        for params, optimizer, each in pairs:
            give(params, each, step, step == 2)
            if params is theirs or is_unscaled:
                each.unscale_(optimizer)
            if params is theirs:
                norms.append(torch.nn.utils.clip_grad_norm_(params, 0.5).item())
            each.step(optimizer)
            each.update()
        if step != 2:
            assert mine.last.norm == pytest.approx(norms[-1], rel=1e-6)
    assert_close(own, theirs, ulps=16)
    assert mine.state[own[0]]["step"] == 4


def test_the_gradients_stay_as_they_are_and_the_scaler_reads_nothing_back(monkeypatch):
    params = parameters(*SHAPES)
    optimizer, own = ours.AdamW(params), scaler()
    give(params, own, 0, is_bad=False)
    before = [param.grad.clone() for param in params]
    monkeypatch.setattr(own, "_maybe_opt_step", None)
    own.step(optimizer)
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad)
    assert optimizer.last.scale == 8.0


def test_gradients_that_the_scaler_has_seen_are_not_measured_again(monkeypatch):
    params = parameters(*SHAPES)
    optimizer, own = ours.AdamW(params), scaler()
    monkeypatch.setattr("lucid_gpu.execution.cpu_sums.CpuSums.run", None)
    give(params, own, 0, is_bad=True)
    own.step(optimizer)
    assert optimizer.last.skipped
    assert optimizer.report() == {}


def test_a_skipped_step_changes_nothing_but_is_counted_apart():
    params = parameters(*SHAPES)
    optimizer, own = ours.AdamW(params), scaler()
    give(params, own, 0, is_bad=False)
    own.step(optimizer)
    own.update()
    before = everything(optimizer)
    give(params, own, 1, is_bad=True)
    own.step(optimizer)
    assert everything(optimizer) == before
    assert (optimizer.skipped, optimizer.last.skipped) == (1, True)


def test_a_copy_and_a_saved_state_know_updates_alone():
    params = parameters(*SHAPES)
    optimizer, own = ours.AdamW(params), scaler()
    for step in range(4):
        give(params, own, step, is_bad=step % 2 == 0)
        own.step(optimizer)
        own.update()
    assert copy.deepcopy(optimizer).state_dict()["state"][0]["step"] == 2


def test_the_scaler_of_this_package_and_pytorchs_give_the_same_bits():
    tensors = parameters(*SHAPES)
    arrays = [Parameter(param.detach().numpy().copy()) for param in tensors]
    optimizers = ours.AdamW(tensors, lr=0.1), optim.AdamW(arrays, lr=0.1)
    theirs, own = scaler(init_scale=48.0), amp.GradScaler("cpu", 48.0, growth_interval=3)
    own.scale(1.0)
    for step in range(6):
        give(tensors, theirs, step, step == 1)
        for tensor, array in zip(tensors, arrays, strict=True):
            array.grad = tensor.grad.numpy().copy()
        for each, optimizer in zip((theirs, own), optimizers, strict=True):
            each.step(optimizer)
            each.update()
    assert theirs.get_scale() == own.get_scale()
    assert values(tensors) == [array.data.tobytes() for array in arrays]


@pytest.mark.parametrize("name", [None, "w"])
def test_an_optimizer_of_pytorchs_kind_is_clipped_and_scaled_by_this_package_too(name):
    (own,), (theirs,) = parameters((3,)), parameters((3,))
    optimizer = ours.SGD([own] if name is None else [(name, own)], lr=0.5)
    scaler = amp.GradScaler("cpu", 8.0)
    scaler.scale(1.0)
    for bad in (False, True):
        own.grad = theirs.grad * 8
        own.grad[0] *= torch.inf if bad else 1.0
        scaler.unscale_(optimizer)
        clip_grad_norm_(optimizer, 0.5)
        scaler.step(optimizer)
        scaler.update()
    torch.nn.utils.clip_grad_norm_([theirs], 0.5)
    torch.optim.SGD([theirs], lr=0.5).step()
    assert_close([own], [theirs])
    assert scaler.get_scale() == 4.0


def test_without_gradients_nothing_steps_and_the_scaler_says_so():
    params = parameters(*SHAPES)
    optimizer, own = ours.AdamW(params), scaler()
    own.scale(torch.tensor(1.0))
    optimizer.zero_grad()
    own.step(optimizer)
    assert not optimizer.state
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        own.update()


def test_a_scale_of_ones_own_divides_the_gradients():
    own, theirs = parameters(*SHAPES), parameters(*SHAPES)
    optimizer = ours.SGD(own, lr=0.1)
    optimizer.grad_scale = torch.tensor([4.0], dtype=torch.float64)
    optimizer.step()
    for param in theirs:
        param.grad.div_(4)
    torch.optim.SGD(theirs, lr=0.1).step()
    assert_close(own, theirs)


def test_a_step_that_is_not_to_be_fused_has_the_scaler_unscale_its_gradients():
    params = parameters(*SHAPES)
    optimizer, own = ours.AdamW(params, fused=False), scaler()
    give(params, own, 0, is_bad=False)
    before = [param.grad.clone() for param in params]
    own.step(optimizer)
    for param, grad in zip(params, before, strict=True):
        assert torch.equal(param.grad, grad / 8)
    assert optimizer.state[params[0]]["step"] == 1
    assert optimizer.last is None


WRONG = [
    ("grad_scale", torch.ones(2), ValueError, "grad_scale must have one element, not 2"),
    ("found_inf", torch.ones(0), ValueError, "found_inf must have one element, not 0"),
    ("grad_scale", "8", TypeError, "grad_scale must be a tensor of one element, not a str"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), WRONG)
def test_what_is_no_scale_is_refused_before_anything_changed(name, value, error, message):
    params = parameters(*SHAPES)
    optimizer = ours.AdamW(params)
    setattr(optimizer, name, value)
    before = everything(optimizer)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert everything(optimizer) == before


def test_a_scale_that_is_elsewhere_is_brought_there(monkeypatch):
    asked = []
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda own, *a: asked.append(a) or to(own, *a[1:]))
    found = engine._single("found_inf", torch.tensor(1.0), "cuda:1")
    assert found.item() == 1.0
    assert asked == [("cuda:1", torch.float32)]


# On a GPU

BAD = 0, 3, 4


def scaled_run(max_norm):
    """Eight steps under a scaler, three of them skipped; and what they end at."""
    params = parameters(*SHAPES)
    optimizer, own, kept = ours.AdamW(params, lr=0.1, max_norm=max_norm), scaler(), []
    for step in range(8):
        give(params, own, step, step in BAD)
        kept.append([param.grad for param in params])
        own.step(optimizer)
        own.update()
        yield
    steps = [float(slots["step"]) for slots in optimizer.state_dict()["state"].values()]
    yield values(params), steps, optimizer.skipped, own.get_scale()


@pytest.fixture(scope="module")
def on_the_host():
    return {max_norm: [*scaled_run(max_norm)][-1] for max_norm in (None, 0.5)}


@pytest.mark.parametrize("is_late", [False, True], ids=["in time", "late"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_a_scaler_steps_on_a_gpu_as_on_the_host_without_a_wait(
    max_norm, is_late, on_the_host, device, monkeypatch
):
    kept, single = [], engine._single
    # PyTorch would not give their memory to others before its stream comes to that.
    monkeypatch.setattr(engine, "_single", lambda *args: kept.append(single(*args)) or kept[-1])
    run, record = scaled_run(max_norm), device.machine.record
    next(run)
    device.machine.lazy = is_late
    for _ in range(7):
        waits, launches = record.synchronizations, len(record.launches)
        next(run)
        assert record.synchronizations == waits
        if max_norm is None:
            assert len(record.launches) == launches + 2
    ended = next(run)
    device.machine.lazy = False
    assert ended == on_the_host[max_norm]
    assert ended[1:3] == ([5.0, 5.0], 3)
