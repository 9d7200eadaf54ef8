"""Mixed precision on a GPU: the bits of the CPU, and no wait for skipped steps."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.amp import GradScaler, masters
from lucid_gpu.device import gpu, transfer
from lucid_gpu.execution import cpu_sums, cuda_sums, formats
from lucid_gpu.optim import LAMB, LARS, SGD, AdamW, NAdam

pytestmark = pytest.mark.gpu
BRIEF, HALF, SINGLE = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32)
WAYS = [
    (BRIEF, {}),
    (HALF, {}),
    (BRIEF, {"master": "split"}),
    (BRIEF, {"master": "none"}),
    (SINGLE, {"state_dtype": "bfloat16"}),
    (BRIEF, {"master": "none", "state_dtype": "bfloat16"}),
]
SHAPES = [(5,), (3, 1367), (7, 9)]


def rounded(values, dtype):
    return formats.nearest(values, dtype) if dtype in formats.HALVES else values.astype(dtype)


def train(device, kind, dtype, options, bad=()):
    """Steps of a scaled, clipped optimizer; returns everything as bytes, and what was skipped."""
    rng = np.random.default_rng(0)
    params = [
        Parameter(
            rounded(rng.normal(size=s).astype(np.float32), dtype), name=f"p{i}", device=device
        )
        for i, s in enumerate(SHAPES)
    ]
    optimizer = kind([(p.name, p) for p in params], lr=0.01, max_norm=1.0, **options)
    scaler = GradScaler(device, init_scale=8.0, growth_interval=3)
    for step in range(8):
        scaler.scale(1.0)
        for param in params:
            values = 8 * rng.normal(size=param.shape).astype(np.float32)
            if step in bad:
                values.reshape(-1)[0] = np.inf
            param.grad = transfer.copy(rounded(values, dtype), device)
        scaler.step(optimizer)
        scaler.update()
    state = optimizer.state_dict("cpu")["state"]
    seen = {f"{i}.{k}": np.asarray(v).tobytes() for i, own in state.items() for k, v in own.items()}
    seen |= {param.name: param.numpy().tobytes() for param in params}
    seen |= {f"{n}!": transfer.to(v, "cpu").tobytes() for n, v in masters(optimizer).items()}
    return seen, optimizer.skipped, scaler.get_scale()


@pytest.mark.parametrize("kind", [AdamW, SGD, NAdam], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_scaled_clipped_and_skipped_steps_have_the_bits_of_the_cpu(kind, way):
    dtype, options = WAYS[way]
    expected = train("cpu", kind, dtype, options, bad=(2, 3, 6))
    assert train("cuda:0", kind, dtype, options, bad=(2, 3, 6)) == expected


def test_moving_to_the_host_and_back_changes_no_bit():
    seen = []
    for moves in (False, True):
        param = Parameter(np.ones(300, BRIEF), device="cuda:0")
        optimizer = AdamW([param], master="split")
        for step in range(4):
            param.grad = transfer.copy(np.full(300, 0.3, BRIEF), "cuda:0")
            if moves and step == 2:
                optimizer.offload()
            optimizer.step()
        seen.append(param.numpy().tobytes())
    assert seen[0] == seen[1]


def test_sums_that_many_blocks_fold_at_once_never_lack_a_part():
    """Whichever comes last finds what all others wrote: a hundred times, with counters as left."""
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=size).astype(np.float32) for size in (1 << 23, 5, 4097, 1 << 22)]
    here = cpu_sums.CpuSums([a.size for a in arrays], [SINGLE] * 4)
    here.take(arrays)
    here.run()
    there = cuda_sums.CudaSums("cuda:0", [a.size for a in arrays], [SINGLE] * 4)
    grads = [transfer.copy(own, "cuda:0") for own in arrays]  # whose memory nothing else keeps
    there.take(grads)
    for _ in range(100):
        there.sums[...] = -1
        there.total[...] = -1
        there.run()
        np.testing.assert_array_equal(transfer.to(there.sums, "cpu"), here.sums)
        np.testing.assert_array_equal(transfer.to(there.total, "cpu"), here.total)


@pytest.mark.parametrize("kind", [LAMB, LARS], ids=lambda kind: kind.__name__)
def test_norms_that_many_blocks_fold_at_once_are_those_of_the_cpu(kind):
    rng = np.random.default_rng(1)
    shapes, results = [(1 << 22,), (7,), (300, 1000)], []
    values = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    grads = [[rng.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(20)]
    for device in ("cuda:0", "cpu"):
        params = [Parameter(own.copy(), device=device) for own in values]
        optimizer = kind(params, lr=0.1)
        for own in grads:
            for param, grad in zip(params, own, strict=True):
                param.grad = transfer.copy(grad, device)
            optimizer.step()
        results.append([param.numpy().tobytes() for param in params])
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", [AdamW, SGD, LAMB], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("way", range(len(WAYS)))
def test_what_a_step_tells_has_the_bits_of_the_cpu(kind, way):
    dtype, options = WAYS[way]
    shapes, results = [(1 << 20,), (3, 1367), (7,)], []
    for device in ("cuda:0", "cpu"):
        rng = np.random.default_rng(2)
        params = [
            Parameter(
                rounded(rng.normal(size=s).astype(np.float32), dtype), name=f"p{i}", device=device
            )
            for i, s in enumerate(shapes)
        ]
        optimizer = kind([(p.name, p) for p in params], lr=0.1, telemetry=True, **options)
        reports = []
        for _ in range(10):
            for param in params:
                grad = rounded(rng.normal(size=param.shape).astype(np.float32), dtype)
                param.grad = transfer.copy(grad, device)
            optimizer.step()
            reports.append(optimizer.report())
        results.append(reports)
    assert results[0] == results[1]


BAD = (2, 3, 7, 21)


def gradients(step, number, scale=8.0):
    values = scale * np.random.default_rng((step, number)).normal(size=SHAPES[number])
    if step in BAD and number == step % len(SHAPES):
        values.reshape(-1)[-1] = np.nan
    return values.astype(np.float32)


def made(places, kind):
    rng = np.random.default_rng(0)
    params = [
        Parameter(rng.normal(size=shape).astype(np.float32), device=places[i % len(places)])
        for i, shape in enumerate(SHAPES)
    ]
    return params, kind(params, lr=0.01, max_norm=1.0, skip_nonfinite=True)


def results(params, optimizer, scaler=None):
    told = optimizer.skipped, optimizer.steps_taken, optimizer.first_skip, repr(optimizer.last)
    state = optimizer.state_dict("cpu")["state"]
    slots = [np.asarray(v).tobytes() for own in state.values() for _, v in sorted(own.items())]
    return [param.numpy().tobytes() for param in params], slots, told, scaler and scaler.get_scale()


def take(optimizer, scaler):
    if scaler is None:
        optimizer.step()
    else:
        scaler.step(optimizer)
        scaler.update()


def stepped(places, kind, scaled, steps):
    """Take ordinary steps."""
    params, optimizer = made(places, kind)
    scaler = GradScaler(places[0], init_scale=8.0, growth_interval=3) if scaled else None
    for step in range(steps):
        for number, param in enumerate(params):
            param.grad = transfer.copy(gradients(step, number), param.device)
        if scaler is not None:
            scaler.scale(1.0)
        take(optimizer, scaler)
    return results(params, optimizer, scaler)


def replayed(kind, scaled, steps):
    """Take one ordinary step, and replay it."""
    stream = gpu.cupy().cuda.Stream(non_blocking=True)
    with stream:
        params, optimizer = made(["cuda:0"], kind)
        scaler = GradScaler("cuda:0", init_scale=8.0, growth_interval=3) if scaled else None
        if scaler is not None:
            scaler.scale(1.0)
        for number, param in enumerate(params):
            param.grad = transfer.copy(gradients(0, number), "cuda:0")
        take(optimizer, scaler)
        stream.begin_capture()
        take(optimizer, scaler)
        graph = stream.end_capture()
        for step in range(1, steps):
            for number, param in enumerate(params):
                param.grad[...] = transfer.copy(gradients(step, number), "cuda:0")
            optimizer.before_replay()
            graph.launch(stream)
        return results(params, optimizer, scaler)


@pytest.mark.parametrize("kind", [AdamW, SGD, LAMB], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("scaled", [False, True])
def test_replays_of_measured_steps_have_the_bits_of_the_cpu(kind, scaled):
    assert replayed(kind, scaled, 40) == stepped(["cpu"], kind, scaled, 40)


def test_replays_run_ahead_of_their_outcomes():
    """Without a look between: the rows for every outcome that the host does not know are right."""
    stream = gpu.cupy().cuda.Stream(non_blocking=True)
    with stream:
        params, optimizer = made(["cuda:0"], AdamW)
        for number, param in enumerate(params):
            param.grad = transfer.copy(gradients(0, number), "cuda:0")
        optimizer.step()
        stream.begin_capture()
        optimizer.step()
        graph = stream.end_capture()
        kept = [
            [transfer.copy(gradients(step, number), "cuda:0") for number in range(len(SHAPES))]
            for step in range(40)
        ]
        for step in range(1, 40):
            for param, values in zip(params, kept[step], strict=True):
                param.grad[...] = values
            optimizer.before_replay()
            graph.launch(stream)
        assert results(params, optimizer) == stepped(["cpu"], AdamW, False, 40)


@pytest.mark.parametrize("places", [["cuda:0", "cuda:1"], ["cpu", "cuda:0"]], ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_several_devices_have_one_norm_and_skip_together(places, scaled):
    if "cuda:1" in places and gpu.count() < 2:
        pytest.skip("one GPU")
    assert stepped(places, AdamW, scaled, 24) == stepped(["cpu"], AdamW, scaled, 24)
