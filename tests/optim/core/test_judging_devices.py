"""Measured steps of parameters on several devices have one norm, and are skipped together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.amp import GradScaler
from lucid_gpu.device import gpu, transfer
from lucid_gpu.execution.cuda_outcomes import WINDOW
from lucid_gpu.optim import LAMB, SGD, Adam, AdamW, NAdam
from tests.optim.core.test_judging import contents

pytestmark = pytest.mark.usefixtures("emulated")
GPUS = ["cuda:0", "cuda:1"]
MIXED = ["cpu", "cuda:1"]
every_mixture = pytest.mark.parametrize(
    "places", [GPUS, MIXED, ["cuda:1", "cpu", "cuda:0"]], ids=str
)
SHAPES = [(5,), (3, 1400), (7,), (1,), (4100,)]


def parameters(places, dtype=np.float32):
    """Parameters whose devices take turns."""
    rng = np.random.default_rng(0)
    return [
        Parameter(
            rng.normal(size=shape).astype(dtype), name=f"p{i}", device=places[i % len(places)]
        )
        for i, shape in enumerate(SHAPES)
    ]


def set_gradients(params, step, bad=None):
    """Set gradients, of which that of one parameter is not finite if ``bad`` is its number."""
    rng = np.random.default_rng(100 + step)
    for number, param in enumerate(params):
        values = rng.normal(size=param.shape).astype(param.dtype)
        if number == bad:
            values.reshape(-1)[-1] = np.nan
        param.grad = transfer.copy(values, param.device)


def result(params, optimizer):
    return (
        contents(params, optimizer),
        optimizer.skipped,
        optimizer.steps_taken,
        optimizer.first_skip,
        repr(optimizer.last),
        repr(optimizer.report()),
    )


def train(places, kind, bad=(None, None, 3, 0, None), scaled=False, **options):
    params = parameters(places)
    optimizer = kind([(param.name, param) for param in params], **options)
    scaler = GradScaler(places[-1], init_scale=8.0, growth_interval=2) if scaled else None
    for step, culprit in enumerate(bad):
        set_gradients(params, step, culprit)
        if scaler is None:
            optimizer.step()
        else:
            scaler.scale(1.0)
            scaler.step(optimizer)
            scaler.update()
    return result(params, optimizer), scaler and scaler.state_dict()


@every_mixture
@pytest.mark.parametrize("kind", [AdamW, SGD, LAMB, NAdam])
@pytest.mark.parametrize("scaled", [False, True])
def test_several_devices_have_the_bits_of_one(places, kind, scaled):
    options = {"max_norm": 0.5, "skip_nonfinite": True}
    expected = train(["cpu"], kind, scaled=scaled, **options)
    assert train(places, kind, scaled=scaled, **options) == expected


@every_mixture
def test_gradients_may_be_missing_on_one_of_them(places):
    seen = []
    for own in (["cpu"], places):
        params = parameters(own)
        optimizer = Adam([(p.name, p) for p in params], max_norm=0.5, skip_nonfinite=True)
        for step in range(6):
            set_gradients(params, step, bad=4 if step == 3 else None)
            for number, param in enumerate(params):
                if number % 2 == step % 3:
                    param.grad = None
            optimizer.step()
        seen.append(result(params, optimizer))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("places", [GPUS, MIXED], ids=str)
def test_strided_gradients_are_measured_where_they_are(places):
    seen = []
    for own in (["cpu"], places):
        params = parameters(own)
        optimizer = Adam([(p.name, p) for p in params], max_norm=0.5, skip_nonfinite=True)
        for step in range(3):
            set_gradients(params, step, bad=1 if step == 1 else None)
            values = transfer.to(params[1].grad, "cpu")
            params[1].grad = transfer.copy(np.asfortranarray(values), params[1].device)
            optimizer.step()
        seen.append(result(params, optimizer))
    assert seen[0] == seen[1]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, None, 0, 3]), st.integers(0, 40), st.integers(0, 40)),
        min_size=1,
        max_size=30,
    )
)
def test_gpus_that_lag_behind_one_another_change_nothing(emulated, steps):
    expected, _ = train(["cpu"], AdamW, [None, *(bad for bad, *_ in steps)], skip_nonfinite=True)
    emulated.lazy = True
    try:
        params = parameters(GPUS)
        optimizer = AdamW([(p.name, p) for p in params], skip_nonfinite=True)
        streams = [gpu.module("cuda").cuda.get_current_stream(number) for number in range(2)]
        for step, (bad, *pieces) in enumerate([(None, 0, 0), *steps]):
            set_gradients(params, step, bad)
            optimizer.step()
            for number, (stream, count) in enumerate(zip(streams, pieces, strict=True)):
                with gpu.on(f"cuda:{number}"):
                    for _ in range(min(count, len(stream._queue))):
                        if stream._queue:  # it may have run for the other one
                            stream.advance()
        assert result(params, optimizer) == expected
    finally:
        emulated.lazy = False


def test_gpus_wait_for_each_other_and_the_host_for_none(emulated):
    params = parameters(GPUS)
    optimizer = Adam(params, skip_nonfinite=True, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    optimizer.skipped  # noqa: B018 - waits
    before = emulated.record.allocations
    emulated.lazy = True
    try:
        waits = emulated.record.synchronizations
        for _ in range(WINDOW):
            optimizer.step()
        assert emulated.record.synchronizations == waits
        assert emulated.record.allocations == before
    finally:
        emulated.lazy = False


def test_a_mixture_with_the_cpu_waits_once_for_each_gpu(emulated):
    params = parameters(["cpu", *GPUS])
    optimizer = Adam(params, skip_nonfinite=True, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    before = emulated.record.synchronizations
    optimizer.step()
    assert emulated.record.synchronizations == before + 2


@pytest.mark.parametrize(
    ("places", "text"),
    [
        (GPUS, "sums of cuda:0 and cuda:1 are gathered on cuda:0, without a wait"),
        (MIXED, "sums of cpu and cuda:1 are gathered on cpu: each step waits for the GPUs"),
    ],
)
def test_explain_tells_where_sums_are_gathered(places, text, capsys):
    params = parameters(places)
    set_gradients(params, 0)
    SGD(params, lr=0.1, max_norm=1.0).explain()
    assert text in capsys.readouterr().out


def test_a_graph_cannot_record_a_step_that_is_measured_on_several_gpus():
    params = parameters(GPUS)
    optimizer = SGD(params, lr=0.1, max_norm=1.0)
    set_gradients(params, 0)
    optimizer.step()
    streams = []
    for device in GPUS:
        with gpu.on(device):
            streams.append(gpu.module("cuda").cuda.Stream(non_blocking=True).use())
            streams[-1].begin_capture()
    with pytest.raises(RuntimeError, match="measured on several GPUs cannot be recorded"):
        optimizer.step()
    for stream in streams:
        stream.end_capture()
