"""Steps whose gradients are measured: clipped by their norm, skipped, and known late on a GPU."""

from __future__ import annotations

import copy
import math
import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.device import gpu, transfer
from lucid_gpu.execution.cuda_outcomes import WINDOW
from lucid_gpu.gradients import clip_grad_norm_
from lucid_gpu.optim import SGD, Adam, AdamW, NAdam
from tests import rules
from tests.emulation.machine import Record

DEVICES = ["cpu", "cuda:0"]
every_device = pytest.mark.parametrize("device", DEVICES)
every_rule = pytest.mark.parametrize("kind", rules.optimizers(), ids=lambda kind: kind.__name__)
pytestmark = pytest.mark.usefixtures("emulated")
SHAPES = [(5,), (3, 1400), (7,)]


def parameters(device, dtype=np.float32):
    rng = np.random.default_rng(0)
    return [
        Parameter(rng.normal(size=shape).astype(dtype), name=f"p{i}", device=device)
        for i, shape in enumerate(SHAPES)
    ]


def set_gradients(params, step, bad=False, scale=1.0):
    rng = np.random.default_rng(100 + step)
    for param in params:
        values = (scale * rng.normal(size=param.shape)).astype(param.dtype)
        if bad:
            values.reshape(-1)[-1] = np.nan
        param.grad = transfer.copy(values, param.device)


def contents(params, optimizer):
    state = optimizer.state_dict("cpu")["state"]
    slots = {f"{i}.{k}": np.asarray(v) for i, own in state.items() for k, v in own.items()}
    data = {param.name: param.numpy() for param in params}
    return {name: (str(v.dtype), v.tobytes()) for name, v in (slots | data).items()}


@every_rule
@every_device
@pytest.mark.parametrize("scale", [0.001, 10.0])
def test_clipping_in_the_step_gives_the_bits_of_clipping_first(kind, device, scale):
    seen = []
    for inside in (True, False):
        params = parameters(device)
        optimizer = kind(params, **({"max_norm": 1.0} if inside else {}))
        for step in range(3):
            set_gradients(params, step, scale=scale)
            kept = [param.grad.copy() for param in params]
            if not inside:
                clip_grad_norm_(params, 1.0)
            optimizer.step()
            if inside:
                for param, grad in zip(params, kept, strict=True):
                    assert bool((param.grad == grad).all())
        seen.append(contents(params, optimizer))
    assert seen[0] == seen[1]


@every_device
@pytest.mark.parametrize("dtype", [np.float64, ml_dtypes.bfloat16, np.float16], ids=str)
def test_the_norm_is_one_of_all_gradients_of_whichever_dtype(device, dtype):
    params = parameters(device) + parameters(device, dtype)
    optimizer = SGD(params, lr=0.1, max_norm=0.5)
    set_gradients(params, 0)
    optimizer.step()
    squares = [np.sum(transfer.to(p.grad, "cpu").astype(np.float64) ** 2) for p in params]
    optimizer.skipped  # noqa: B018 - waits
    assert optimizer.last.norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)


@pytest.mark.parametrize("options", [{"max_norm": 0.5}, {"skip_nonfinite": True}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=str)
def test_a_gpu_numpy_and_compiled_code_give_the_same_bits(options, dtype, monkeypatch):
    seen = []
    for device, code in (("cpu", "numpy"), ("cpu", "compiled"), ("cuda:0", "numpy")):
        monkeypatch.setenv("LUCID_GPU_CPU", code)
        params = parameters(device, dtype)
        optimizer = AdamW(params, **options)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        seen.append(contents(params, optimizer))
    assert seen[0] == seen[1] == seen[2]


@every_rule
@every_device
def test_a_skipped_step_equals_no_step(kind, device):
    seen = []
    for skips in (True, False):
        params = parameters(device)
        optimizer = kind(params, skip_nonfinite=True)
        for step in range(4):
            if skips:
                set_gradients(params, 50 + step, bad=True)
                optimizer.step()
            set_gradients(params, step)
            optimizer.step()
        seen.append(contents(params, optimizer))
        assert optimizer.skipped == 4 * skips
    assert seen[0] == seen[1]


@every_rule
@every_device
def test_a_skipped_first_step_leaves_no_state(kind, device):
    params = parameters(device)
    optimizer = kind(params, skip_nonfinite=True)
    for step in range(3):
        set_gradients(params, step, bad=True)
        optimizer.step()
    assert params[0] not in optimizer.state
    assert (len(optimizer.state), optimizer.state_dict()["state"]) == (0, {})
    seen = []
    for own, each in ((params, optimizer), (twins := parameters(device), kind(twins))):
        for step in range(2):
            set_gradients(own, step)
            each.step()
        seen.append(contents(own, each))
    assert seen[0] == seen[1]


@every_device
def test_a_skipped_step_takes_back_slots_that_were_switched_on_for_it(device):
    params = parameters(device)
    optimizer = Adam(params, skip_nonfinite=True)
    set_gradients(params, 0)
    optimizer.step()
    before = contents(params, optimizer)
    optimizer.param_groups[0]["amsgrad"] = True
    set_gradients(params, 1, bad=True)
    optimizer.step()
    assert contents(params, optimizer) == before
    set_gradients(params, 2)
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[params[0]]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 40)), min_size=1, max_size=40),
    st.sampled_from([AdamW, SGD, NAdam]),
)
def test_outcomes_that_arrive_late_change_nothing(emulated, steps, kind):
    expected = parameters("cpu")
    known = kind(expected, skip_nonfinite=True)
    emulated.lazy = True
    try:
        params = parameters("cuda:0")
        optimizer = kind(params, skip_nonfinite=True)
        stream = gpu.module("cuda").cuda.get_current_stream()
        for step, (bad, pieces) in enumerate(steps):
            for own in (params, expected):
                set_gradients(own, step, bad)
            known.step()
            optimizer.step()
            for _ in range(min(pieces, len(stream._queue))):
                stream.advance()
        assert optimizer.skipped == known.skipped
        assert contents(params, optimizer) == contents(expected, known)
    finally:
        emulated.lazy = False


def test_the_host_waits_for_no_outcome_before_the_window_is_full(emulated):
    params = parameters("cuda:0")
    optimizer = Adam(params, skip_nonfinite=True, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.skipped  # noqa: B018 - waits
    emulated.lazy = True
    try:
        before = emulated.record.synchronizations
        for _ in range(WINDOW):
            optimizer.step()
        assert emulated.record.synchronizations == before
        assert optimizer.last is not None  # of the first step
    finally:
        emulated.lazy = False


def test_counts_are_exact_when_they_are_read(emulated):
    params = parameters("cuda:0")
    optimizer = Adam(params, skip_nonfinite=True)
    emulated.lazy = True
    try:
        for step in range(6):
            set_gradients(params, step, bad=step % 2 == 0)
            optimizer.step()
        assert optimizer.state[params[0]]["step"] == 3
        assert optimizer.skipped == 3
    finally:
        emulated.lazy = False


@every_device
def test_gradients_that_come_and_go_are_counted_apart(device):
    params = parameters(device)
    optimizer = Adam(params, skip_nonfinite=True)
    for step in range(6):
        set_gradients(params, step, bad=step in (1, 4))
        if step > 2:
            params[0].grad = None
        optimizer.step()
    assert [optimizer.state[param]["step"] for param in params] == [2, 4, 4]


@every_device
def test_strided_parameters_are_clipped_and_skipped_too(device):
    seen = []
    for strided in (False, True):
        home = transfer.copy(np.ones((4, 6), np.float32), device)
        param = Parameter(home[:, ::2] if strided else home[:, ::2].copy())
        optimizer = Adam([param], skip_nonfinite=True, max_norm=0.1)
        for step in range(4):
            values = np.full((4, 3), np.inf if step == 1 else 0.5, np.float32)
            param.grad = transfer.copy(values, device)
            optimizer.step()
        seen.append((param.numpy().tolist(), optimizer.state[param]["step"], optimizer.skipped))
    assert seen[0] == seen[1]
    assert seen[0][1:] == (3, 1)


def test_state_in_host_memory_is_skipped_and_clipped_alike():
    seen = []
    for where in (None, "host"):
        params = parameters("cuda:0")
        optimizer = AdamW(params, state_device=where, skip_nonfinite=True, max_norm=0.5)
        for step in range(4):
            set_gradients(params, step, bad=step == 2)
            optimizer.step()
        seen.append(contents(params, optimizer))
    assert seen[0] == seen[1]


@every_device
def test_the_report_names_the_culprits(device):
    params = parameters(device)
    optimizer = SGD([(p.name, p) for p in params], lr=0.1, skip_nonfinite=True)
    set_gradients(params, 0)
    grad = np.ones((3, 1400), np.float32)
    grad[0, :3] = math.inf
    params[1].grad = transfer.copy(grad, device)
    optimizer.step()
    report = optimizer.report()
    assert [own["nonfinite"] for own in report.values()] == [0, 3, 0]
    norm = np.linalg.norm(transfer.to(params[0].grad, "cpu").astype(np.float64))
    assert report["p0"]["grad_norm"] == pytest.approx(norm, rel=1e-12)
    assert optimizer.last.nonfinite == 3
    assert optimizer.last.skipped


@every_device
def test_the_first_skipped_step_is_told_with_its_culprits(device):
    params = parameters(device)
    optimizer = SGD([(p.name, p) for p in params], lr=0.1, skip_nonfinite=True)
    set_gradients(params, 0)
    optimizer.step()
    assert optimizer.first_skip is None
    grad = np.ones((3, 1400), np.float32)
    grad[0, :3] = math.inf
    params[1].grad = transfer.copy(grad, device)
    optimizer.step()
    set_gradients(params, 2, bad=True)
    optimizer.step()
    optimizer.param_groups[0]["maximize"] = True
    optimizer.add_param_group({"params": [("new", parameters(device)[0])]})
    optimizer.step()
    assert optimizer.first_skip == "step 2 skipped: 3 non-finite elements in 'p1'"


@every_device
def test_the_first_skipped_step_names_four_culprits_at_most(device):
    params = [Parameter(np.ones(2, np.float32), device=device) for _ in range(6)]
    optimizer = SGD(params, lr=0.1, skip_nonfinite=True)
    for param in params:
        param.grad = transfer.copy(np.full(2, np.nan, np.float32), device)
    optimizer.step()
    assert optimizer.first_skip.endswith("2 non-finite elements in '0.3', and in 2 more")


@every_device
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_steps_taken_are_all_that_were_not_skipped(device, copied):
    params = parameters(device)
    optimizer = Adam(params, skip_nonfinite=True)
    for step in range(5):
        set_gradients(params, step, bad=step in (1, 2))
        optimizer.step()
    assert (optimizer.steps_taken, optimizer.skipped) == (3, 2)
    twin = copied(optimizer)
    assert (twin.steps_taken, twin.skipped, twin.first_skip) == (3, 2, optimizer.first_skip)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["skip_nonfinite"] = False
    optimizer.step()
    assert (optimizer.steps_taken, optimizer.skipped) == (4, 2)


def test_nothing_is_reported_where_nothing_was_measured():
    optimizer = SGD([Parameter([1.0])], lr=0.1)
    assert (optimizer.last, optimizer.skipped, optimizer.report()) == (None, 0, {})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda own: pickle.loads(pickle.dumps(own))])
def test_a_copy_measures_on_its_own(copied):
    params = parameters("cpu")
    optimizer = AdamW(params, max_norm=0.5)
    set_gradients(params, 0)
    optimizer.step()
    others, twin = copied((params, optimizer))
    for own, each in ((params, optimizer), (others, twin)):
        set_gradients(own, 1)
        each.step()
    assert contents(params, optimizer) == contents(others, twin)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_count_hooks_run_for_skipped_steps_too_on_every_device(device, emulated):
    params = parameters(device)
    optimizer = SGD(params, lr=0.1, skip_nonfinite=True)
    seen = []
    optimizer.register_step_count_hook(lambda _: seen.append(1))
    for step in range(4):
        set_gradients(params, step, bad=step == 1)
        optimizer.step()
    assert optimizer.skipped == 1
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_norm": 0}, "max_norm must be None or > 0, not 0"),
        ({"max_norm": -1.0}, "max_norm must be None or > 0, not -1.0"),
        ({"max_norm": math.nan}, "max_norm must be finite, not nan"),
        ({"skip_nonfinite": None}, "skip_nonfinite must be one of False, True, not None"),
        ({"telemetry": 1}, "telemetry must be one of False, True, not 1"),
    ],
)
def test_bounds_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        SGD([Parameter([1.0])], lr=0.1, **options)


def test_groups_that_ask_for_different_norms_are_refused():
    params = parameters("cpu")
    optimizer = SGD([{"params": params[:1], "max_norm": 1.0}, {"params": params[1:]}], lr=0.1)
    set_gradients(params, 0)
    with pytest.raises(
        ValueError, match=r"max_norm is 1\.0 in parameter group 0 and None in group 1"
    ):
        optimizer.step()


@pytest.mark.parametrize(("kind", "waits"), [(NAdam, True), (Adam, False)])
def test_explain_tells_that_steps_wait_for_each_other(kind, waits, capsys):
    params = parameters("cuda:0")
    set_gradients(params, 0)
    kind(params, skip_nonfinite=True).explain()
    assert ("waits until it is known whether the one before" in capsys.readouterr().out) is waits


@every_device
def test_explain_tells_that_gradients_are_measured(device, capsys):
    params = parameters(device)
    optimizer = SGD(params, lr=0.1, max_norm=1.0, skip_nonfinite=True)
    set_gradients(params, 0)
    optimizer.explain()
    assert (
        "gradients are measured first: clipped to the norm 1.0, skipped" in capsys.readouterr().out
    )


def test_a_measured_step_is_a_launch_for_each_dtype_and_one_for_each_storage(emulated):
    params = [*parameters("cuda:0"), *parameters("cuda:0", np.float64)]
    optimizer = Adam(params, max_norm=1.0, skip_nonfinite=True)
    for step in range(2):
        set_gradients(params, step)
        emulated.record = Record()
        optimizer.step()
    assert len(emulated.record.launches) == 2 + 2


@every_device
def test_a_step_of_no_elements_is_judged(device):
    param = Parameter(np.zeros(0, np.float32), device=device)
    param.grad = transfer.copy(np.zeros(0, np.float32), device)
    optimizer = SGD([param], lr=1.0, max_norm=1.0)
    optimizer.step()
    assert optimizer.skipped == 0
    assert optimizer.last == (0.0, 1.0, 0, False, 1.0)
