"""Parameter, gradient and each slot stored apart: loaded, computed and stored as each is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_gpu import set_cpu_code
from lucid_gpu.device import transfer
from lucid_gpu.execution import plan
from lucid_gpu.execution.cpu import CpuExecutor
from lucid_gpu.execution.cuda import CudaExecutor
from lucid_gpu.execution.plan import TensorGroup
from lucid_gpu.execution.rule import Storage
from lucid_gpu.execution.streamed import StreamedExecutor
from lucid_gpu.optim import SGD, Adam
from tests.stepping import host

SIZES = (5, 4099, 3)
STORAGES = [
    storage for storage in itertools.product(["f4", "f8"], repeat=4) if len(set(storage)) > 1
]
every_storage = pytest.mark.parametrize("dtypes", STORAGES, ids="-".join)
WHERE = {
    "cpu": ("cpu", CpuExecutor),
    "compiled": ("cpu", CpuExecutor),
    "cuda": ("cuda:0", CudaExecutor),
    "streamed": ("cuda:0", StreamedExecutor),
}


def numbers(dtypes):
    """Values of parameter, gradient and slots of each tensor, and what they are stored as."""
    rng = np.random.default_rng(11)
    return [[np.abs(rng.normal(size=size)).astype(dtype) for dtype in dtypes] for size in SIZES]


def pinned(values):
    memory = transfer.pinned_block(max(1, values.nbytes))[: values.nbytes].view(values.dtype)
    memory[:] = values
    return memory


def run(where, dtypes, values, rule, variant, rows, row_of):
    """Run an executor once; return parameters and slots on the host."""
    device, kind = WHERE[where]
    param, grad, *slots = map(np.dtype, dtypes)
    all_slots = tuple((slots + slots)[: len(rule.slots)])
    params = [transfer.copy(own[0], device) for own in values]
    grads = [transfer.copy(own[1], device) for own in values]
    keep = pinned if where == "streamed" else (lambda array: transfer.copy(array, device))
    used = len(rule.used_slots(variant))
    made = [tuple(map(keep, own[2 : 2 + used])) for own in values]
    storage = Storage(param, grad, all_slots)
    group = TensorGroup(rule, storage, params, made, [variant] * len(params))
    set_cpu_code("compiled" if where == "compiled" else "numpy")
    executor = kind(group, grads)
    set_cpu_code(None)
    executor.run(np.array(rows, storage.compute), np.array(row_of, np.int32))
    if where == "streamed":
        executor.arrive()
    return [[host(array).copy() for array in (p, *s)] for p, s in zip(params, made, strict=True)]


def row_of(rule, lr, decay=0.25):
    options = {**rule([_Nothing()]).param_groups[0], "lr": lr, "weight_decay": decay}
    if rule is SGD:
        options["momentum"] = 0.5
    return rule.rule.row(options, 2, (), is_first=False)[0]


class _Nothing:
    data = grad = None


@pytest.mark.parametrize("where", WHERE)
@every_storage
@pytest.mark.parametrize("kind", [Adam, SGD], ids=lambda kind: kind.__name__)
@pytest.mark.usefixtures("emulated")
def test_each_array_is_read_and_written_as_what_it_is_stored_as(where, kind, dtypes):
    rule = kind.rule
    variant = rule.variants()[0 if kind is Adam else 1]
    rows, own_rows = [row_of(kind, lr) for lr in (0.5, 0.125)], [0, 1, 0]
    values = numbers(dtypes)
    computed = [[array.astype(dtypes[0]) for array in own] for own in values]
    uniform = (dtypes[0],) * len(dtypes)
    expected = run("cpu", uniform, computed, rule, variant, rows, own_rows)
    seen = run(where, dtypes, values, rule, variant, rows, own_rows)
    stored = [dtypes[0], *dtypes[2:]]
    for ours, theirs in zip(seen, expected, strict=True):
        assert [array.dtype for array in ours] == stored[: len(ours)]
        for one, other, dtype in zip(ours, theirs, stored, strict=False):
            np.testing.assert_array_equal(one, other.astype(dtype))


@pytest.mark.parametrize("dtypes", [("f4", "f8", "f4", "f8"), ("f8", "f4", "f8", "f4")])
@pytest.mark.usefixtures("emulated")
def test_a_window_holds_slots_of_the_widest_dtype(dtypes, monkeypatch):
    monkeypatch.setattr("lucid_gpu.execution.streamed.WINDOW_BYTES", 2 * 8 * plan.CHUNK_ELEMENTS)
    rows, values = [row_of(Adam, 0.5)], numbers(dtypes)
    arguments = dtypes, values, Adam.rule, Adam.rule.variants()[0], rows, [0, 0, 0]
    for ours, theirs in zip(run("streamed", *arguments), run("cpu", *arguments), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
