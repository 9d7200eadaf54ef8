"""Parameter, gradient and each slot stored apart: loaded, computed and stored as each is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_gpu import set_cpu_code
from lucid_gpu.device import transfer
from lucid_gpu.execution import formats, plan, twin
from lucid_gpu.execution.cpu import CpuExecutor
from lucid_gpu.execution.cuda import CudaExecutor
from lucid_gpu.execution.plan import TensorGroup
from lucid_gpu.execution.rule import BFLOAT16, Storage
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


BRIEF, HALF, SINGLE = BFLOAT16, np.dtype(np.float16), np.dtype(np.float32)

MIXED = {
    "master": Storage(BRIEF, BRIEF, (SINGLE,), "float32"),
    "master-of-float16": Storage(HALF, HALF, (SINGLE,), "float32"),
    "split": Storage(BRIEF, BRIEF, (SINGLE,), "split"),
    "none": Storage(BRIEF, BRIEF, (SINGLE,), "none"),
    "brief-state": Storage(SINGLE, BRIEF, (BRIEF,), "none"),
    "split-brief-state": Storage(BRIEF, SINGLE, (BRIEF,), "split"),
    "none-brief-state": Storage(BRIEF, BRIEF, (BRIEF,), "none"),
    "float16-gradients": Storage(SINGLE, HALF, (SINGLE,), "none"),
}
"""What parameter, gradient and every slot are stored as."""

every_mixture = pytest.mark.parametrize("name", MIXED)
SHAPES = [(5,), (3, 1367), (7, 3)]


def mixed_values(storage, rule, variant, misaligned):
    """Arrays of each tensor on the host: parameter, gradient, slots, what is beside it."""
    rng = np.random.default_rng(5)
    used = storage.used(rule, variant)
    values = []
    for shape in SHAPES:
        exact = rng.normal(size=shape).astype(np.float32)
        grad = formats_of(rng.normal(size=shape).astype(np.float32), storage.grad)
        slots = {
            slot: formats_of(np.abs(rng.normal(size=shape)).astype(np.float32), dtype)
            for slot, dtype in used.items()
        }
        param = formats_of(exact, storage.param)
        if storage.master == "split":
            param, slots["master_low"] = formats.split(exact)
        elif storage.master == "float32":
            slots["master"] = exact
        own = [param, grad, *slots.values()]
        values.append([shifted(array, misaligned * k % 3) for k, array in enumerate(own)])
    return values


def formats_of(values, dtype):
    return formats.nearest(values, dtype) if dtype in formats.HALVES else values.astype(dtype)


def shifted(array, elements):
    """The same array, so many elements behind a place where vectors begin."""
    memory = np.zeros(array.size + elements + 64, array.dtype)
    start = -memory.ctypes.data % 64 // array.itemsize + elements
    memory[start : start + array.size] = array.reshape(-1)
    return memory[start : start + array.size].reshape(array.shape)


def on_device(array, device, elements=0):
    """A copy of an array on a device, so many elements behind the begin of its memory."""
    memory = np.zeros(array.size + elements, array.dtype)
    memory[elements:] = array.reshape(-1)
    return transfer.copy(memory, device)[elements:].reshape(array.shape)


def run_mixed(where, storage, values, rule, variant, rows, layout="C", shift=0):
    device, kind = WHERE[where]
    params, grads, slots = [], [], []
    for own in values:
        arrays = [
            on_device(array, device, shift * (k % 3)) if layout == "C" else np.asfortranarray(array)
            for k, array in enumerate(own)
        ]
        if layout != "C":
            arrays = [transfer.copy(array, device) for array in arrays]
        if where == "streamed":
            arrays[2:] = [pinned_like(array) for array in own[2:]]
        params.append(arrays[0])
        grads.append(arrays[1])
        slots.append(tuple(arrays[2:]))
    full = storage._replace(slots=storage.slots * len(rule.slots))
    variants = [variant] * len(params)
    streams = [256, 512, 768]
    group = TensorGroup(rule, full, params, slots, variants, streams, 2**40 + 3)
    set_cpu_code("compiled" if where == "compiled" else "numpy")
    executor = kind(group, grads)
    set_cpu_code(None)
    executor.run(rows, np.array([0, 1, 0], np.int32))
    if where == "streamed":
        executor.arrive()
    return [[host(array).copy() for array in (p, *s)] for p, s in zip(params, slots, strict=True)]


def pinned_like(array):
    return pinned(np.ascontiguousarray(array).reshape(-1)).reshape(array.shape)


def mixed_rows(kind):
    rows = np.array([row_of(kind, lr) for lr in (0.5, 0.125)], np.float32)
    rows[:, -1] = np.array([7, 2**20 + 1], np.uint32).view(np.float32)
    return rows


def by_hand(storage, values, rule, variant, rows):
    """The step of each tensor as a whole, in float32, and its storing by the definitions."""
    results = []
    for tensor, (own, row) in enumerate(zip(values, (0, 1, 0), strict=True)):
        full = storage._replace(slots=storage.slots * len(rule.slots))
        param, grad, *slots = own
        names = list(full.used(rule, variant))
        beside = slots.pop() if storage.master != "none" else None
        if storage.master == "split":
            exact = formats.join(param, beside)
        else:
            exact = (param if beside is None else beside).astype(np.float32)
        computed = [exact, grad.astype(np.float32), *(slot.astype(np.float32) for slot in slots)]
        computed = [array.reshape(-1) for array in computed]
        group = TensorGroup(rule, uniform(rule), [computed[0]], [tuple(computed[2:])], [variant])
        values_of = twin.RowValues(group)
        values_of.set(rows)
        twin.update(group, variant, values_of[row], computed)
        steps = int(rows[row, -1].view(np.uint32))

        def rounded(array, dtype, number, like=param, tensor=tensor, steps=steps):
            if dtype == BFLOAT16:
                stream = 256 * (1 + tensor) + number
                elements = np.arange(like.size)
                random = formats.random_bits(2**40 + 3, steps, stream, elements)
                return formats.stochastic(array, random)
            return array

        if storage.master == "split":
            first, last = formats.split(computed[0])
        elif storage.master == "float32":
            first, last = formats.nearest(computed[0], storage.param), computed[0]
        else:
            first, last = rounded(computed[0], storage.param, 0), None
        stored = [
            rounded(array, storage.slots[0], 1 + rule.slots.index(name))
            for name, array in zip(names, computed[2:], strict=False)
        ]
        arrays = [first, *stored] + ([last] if last is not None else [])
        results.append([array.reshape(param.shape) for array in arrays])
    return results


def uniform(rule):
    return Storage(SINGLE, SINGLE, (SINGLE,) * len(rule.slots))


def assert_same_bits(seen, expected):
    for ours, theirs in zip(seen, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(
                np.ascontiguousarray(one).view(f"u{one.itemsize}"),
                np.ascontiguousarray(other).view(f"u{one.itemsize}"),
            )


@pytest.mark.parametrize("where", WHERE)
@every_mixture
@pytest.mark.parametrize("kind", [Adam, SGD], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.usefixtures("emulated")
def test_formats_of_16_bits_are_computed_in_float32_and_stored_as_defined(where, kind, name, shift):
    rule, storage = kind.rule, MIXED[name]
    variant = rule.variants()[0]
    full = storage._replace(slots=storage.slots * len(rule.slots))
    values, rows = mixed_values(full, rule, variant, shift), mixed_rows(kind)
    expected = by_hand(storage, values, rule, variant, rows)
    seen = run_mixed(where, storage, values, rule, variant, rows, shift=shift)
    assert_same_bits(seen, expected)


@pytest.mark.parametrize("where", ["cpu", "compiled", "cuda"])
@every_mixture
@pytest.mark.usefixtures("emulated")
def test_the_layout_of_arrays_changes_no_bit(where, name):
    rule, storage = Adam.rule, MIXED[name]
    variant = rule.variants()[0]
    full = storage._replace(slots=storage.slots * len(rule.slots))
    values, rows = mixed_values(full, rule, variant, 0), mixed_rows(Adam)
    expected = by_hand(storage, values, rule, variant, rows)
    seen = run_mixed(where, storage, values, rule, variant, rows, layout="F")
    assert_same_bits(seen, expected)


@every_mixture
@pytest.mark.usefixtures("emulated")
def test_windows_and_blocks_change_no_bit(name, monkeypatch):
    monkeypatch.setattr("lucid_gpu.execution.streamed.WINDOW_BYTES", 1 << 14)
    monkeypatch.setattr("lucid_gpu.execution.twin.BLOCK_ELEMENTS", 1000)
    rule, storage = Adam.rule, MIXED[name]
    variant = rule.variants()[0]
    full = storage._replace(slots=storage.slots * len(rule.slots))
    values, rows = mixed_values(full, rule, variant, 0), mixed_rows(Adam)
    expected = by_hand(storage, values, rule, variant, rows)
    for where in ("streamed", "cpu"):
        assert_same_bits(run_mixed(where, storage, values, rule, variant, rows), expected)


@pytest.mark.parametrize("dtypes", [("f4", "f8", "f4", "f8"), ("f8", "f4", "f8", "f4")])
@pytest.mark.usefixtures("emulated")
def test_a_window_holds_slots_of_the_widest_dtype(dtypes, monkeypatch):
    monkeypatch.setattr("lucid_gpu.execution.streamed.WINDOW_BYTES", 2 * 8 * plan.CHUNK_ELEMENTS)
    rows, values = [row_of(Adam, 0.5)], numbers(dtypes)
    arguments = dtypes, values, Adam.rule, Adam.rule.variants()[0], rows, [0, 0, 0]
    for ours, theirs in zip(run("streamed", *arguments), run("cpu", *arguments), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
