"""Mixed precision on a GPU: the bits of the CPU, and no wait for skipped steps."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.amp import GradScaler, masters
from lucid_gpu.device import transfer
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
    there.take([transfer.copy(own, "cuda:0") for own in arrays])
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
