"""Runs a rule on the CPU, in blocks that stay in cache, on threads.

Blocks are updated by the rule's NumPy twin or, if asked for, to the same bits by compiled code:
see :mod:`lucid_gpu.execution.compiled`.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import chain, pairwise, repeat
from operator import getitem, setitem
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.device.arrays import C_ORDER, address, contiguity, device_of
from lucid_gpu.execution import compiled
from lucid_gpu.execution.plan import Work, common_layout

BLOCK_ELEMENTS = 1 << 17
"""Elements of a block. Measured best with 1 MiB of L2 cache per core."""

COMPILED_ELEMENTS = 1 << 19
"""Elements of a block of compiled code, at most. It passes once, so that caches do not matter, and
each turn through the interpreter makes the other threads wait."""

FEWEST_BLOCKS = 16
"""Into which compiled code cuts its work: enough for the threads to end together."""

PACKED_ELEMENTS = 1 << 12
"""Up to this size, copying a tensor into a block with others costs less than a block of its own."""

THREAD_ELEMENTS = 1 << 15
"""Elements below which another thread costs more than it saves."""

ALIGNMENT = 64
"""Bytes of a cache line, at which scratch begins: vector instructions then cross none."""

Region: TypeAlias = Any
"""What cuts a block out of an array: a slice of a flattened one, or a tuple of slices."""

Job: TypeAlias = "_Block | _Pack"


def thread_count() -> int:
    """Return how many threads step: ``LUCID_GPU_NUM_THREADS``, else the cores of the process.

    Raises:
        ValueError: the variable is set and is no whole number of at least 1.
    """
    text = os.environ.get("LUCID_GPU_NUM_THREADS")
    if text is None:
        return (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"LUCID_GPU_NUM_THREADS must be a whole number >= 1, not {text!r}")
    return int(text)


def fits_a_pack(param: Any) -> bool:
    """Say whether a parameter is stepped together with others: best with slots side by side."""
    return device_of(param) == "cpu" and param.size <= PACKED_ELEMENTS and param.flags.c_contiguous


class CpuExecutor:
    """Steps NumPy arrays. The result does not depend on blocks or threads.

    Attributes:
        needs_gradients: each run forgets its gradients, so that their memory is free as soon as
            the training loop lets go of them; the next run wants them again.
    """

    needs_gradients = True

    def __init__(self, work: Work) -> None:
        self._work = work
        layouts = [common_layout((p, *s)) for p, s in zip(work.params, work.slots, strict=True)]
        small = [
            tensor
            for tensor, (param, layout) in enumerate(zip(work.params, layouts, strict=True))
            if fits_a_pack(param) and layout & C_ORDER
        ]
        packs = [pack for pack in _packed(work, small) if len(pack) > 1]
        alone = sorted(set(range(len(layouts))).difference(*packs))
        self._alone = [(tensor, layouts[tensor]) for tensor in alone]
        self._is_flat = self._matches(work.grads)
        elements = sum(param.size for param in work.params)
        most = elements_of_a_flat_block(elements)
        self._jobs: list[Job] = [
            _Block(work, tensor, region, flat)
            for tensor, flat in zip(alone, self._is_flat, strict=True)
            for region in _regions(work.params[tensor].shape, flat, most)
        ]
        self._jobs += [_Pack(work, tensors) for tensors in packs]
        # Each further thread must find enough to do.
        self._most_workers = min(len(self._jobs), -(-elements // THREAD_ELEMENTS))
        # Views without dimensions: ufuncs take them in half the time of NumPy's scalars.
        self._scalars = np.zeros((len(work.variants), len(work.rule.Scalars._fields)), work.dtype)
        rows = [work.rule.Scalars(*(row[i, ...] for i in range(len(row)))) for row in self._scalars]
        updates = [compiled.compiled_update(work.rule, v, work.dtype) for v in work.variants]
        self._constants = list(zip(rows, work.variants, updates, strict=True))
        self._grads: list[Any] = []
        self._take(work.grads)
        work.grads = []

    def replace_gradients(self, grads: Sequence[Any]) -> bool:
        """Take other gradient arrays from now on; False if their layout asks for a new executor."""
        if self._matches(grads) != self._is_flat:
            return False
        self._take(grads)
        return True

    def run(self, scalars: Sequence[Any]) -> None:
        """Update every tensor, with one tuple of scalars for each row."""
        values = chain.from_iterable(scalars)
        self._scalars.reshape(-1)[:] = np.fromiter(values, self._scalars.dtype)
        try:
            self._run_on_threads()
        finally:
            self._grads = []

    def _take(self, grads: Sequence[Any]) -> None:
        """Get ready for a run, while a wrong number of threads can still be refused unharmed."""
        threads = thread_count() if self._most_workers > 1 else 1
        self._workers = min(threads, max(self._most_workers, 1))
        self._grads = list(grads)

    def _run_on_threads(self) -> None:
        jobs, workers = iter(self._jobs), self._workers
        if workers == 1:
            self._run_jobs(jobs)
            return
        pool = _pool(workers - 1, os.getpid())
        shared = _Shared(jobs)
        others = [pool.submit(self._run_jobs, shared) for _ in range(workers - 1)]
        try:
            self._run_jobs(shared)
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error

    def _run_jobs(self, jobs: Iterator[Job]) -> None:
        # A GPU raises no floating-point warnings either; NaN and infinity pass through.
        with np.errstate(all="ignore"):
            for job in jobs:
                job.run(self._grads, self._constants)

    def _matches(self, grads: Sequence[Any]) -> list[bool]:
        """Say of each tensor in no pack whether it can be flattened together with its gradient."""
        return [(layout & contiguity(grads[tensor])) != 0 for tensor, layout in self._alone]


class _Block:
    """A part of one tensor, updated where it lies."""

    def __init__(self, work: Work, tensor: int, region: Region, flat: bool) -> None:
        self._work, self._tensor, self._region, self._flat = work, tensor, region, flat
        self._row = work.row[tensor]
        self._param, *self._slots = map(self._cut, (work.params[tensor], *work.slots[tensor]))
        self._slots += [None] * (len(work.rule.slots) - len(self._slots))

    def run(self, grads: Sequence[Any], constants: Sequence[Any]) -> None:
        rule, param = self._work.rule, self._param
        scalars, variant, compiled = constants[self._row]
        arrays = param, self._cut(grads[self._tensor]), *self._slots
        if self._flat and compiled is not None:  # compiled code knows no strides
            compiled(scalars, variant, *arrays)
            return
        scratch = [
            memory[: param.size].reshape(param.shape)
            for memory in _scratch(rule.scratch, self._work.dtype)
        ]
        rule.update(scalars, variant, *arrays, *scratch)

    def _cut(self, array: Any) -> Any:
        return (_flatten(array) if self._flat else array)[self._region]


class _Pack:
    """Small tensors, copied together, updated as one, and copied back.

    Arrays that lie side by side in one buffer already are updated there. The others are copied as
    bytes through memory views, which costs Python a fifth of what assigning arrays does.
    """

    def __init__(self, work: Work, tensors: Sequence[int]) -> None:
        self._work, self._tensors = work, tensors
        self._row = work.row[tensors[0]]
        ends = np.cumsum([work.params[tensor].nbytes for tensor in tensors]).tolist()
        self._places = [slice(*bounds) for bounds in pairwise([0, *ends])]
        self._size = ends[-1] // work.dtype.itemsize
        kept = zip(*((work.params[tensor], *work.slots[tensor]) for tensor in tensors), strict=True)
        joined = [(_joined(arrays), arrays) for arrays in kept]
        self._kept = [
            (whole, [] if whole is not None else [_as_bytes(array) for array in arrays])
            for whole, arrays in joined
        ]

    def run(self, grads: Sequence[Any], constants: Sequence[Any]) -> None:
        rule = self._work.rule
        scalars, variant, compiled = constants[self._row]
        update = compiled or rule.update
        count = len(self._kept)
        memory = _scratch(count + 1 + rule.scratch, self._work.dtype)
        grad, *arrays = (array[: self._size] for array in memory)
        np.concatenate([grads[tensor] for tensor in self._tensors], axis=None, out=grad)
        param, *slots = map(self._gathered, self._kept, arrays)
        slots += [None] * (len(rule.slots) - len(slots))
        update(scalars, variant, param, grad, *slots, *arrays[count:])
        for (joined, parts), array in zip(self._kept, arrays, strict=False):
            if joined is None:
                pieces = map(getitem, repeat(_as_bytes(array)), self._places)
                _exhaust(map(setitem, parts, repeat(slice(None)), pieces))

    def _gathered(self, kept: tuple[Any, list[Any]], array: Any) -> Any:
        joined, parts = kept
        if joined is not None:
            return joined
        _exhaust(map(setitem, repeat(_as_bytes(array)), self._places, parts))
        return array


_exhaust: Callable[[Iterable[Any]], Any] = deque(maxlen=0).extend


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._lock = threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> Any:
        with self._lock:
            return next(self._items)


@cache
def _pool(workers: int, pid: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a fork inherits no threads
    return ThreadPoolExecutor(workers, thread_name_prefix="lucid_gpu")


_local = threading.local()


def _scratch(count: int, dtype: np.dtype[Any]) -> list[Any]:
    """Return uninitialized arrays of a block's size, in memory that this thread keeps."""
    kept: dict[np.dtype[Any], list[Any]] = _local.__dict__.setdefault("scratch", {})
    arrays = kept.setdefault(dtype, [])
    while len(arrays) < count:
        nbytes = BLOCK_ELEMENTS * dtype.itemsize
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        arrays.append(memory[start : start + nbytes].view(dtype))
    return arrays[:count]


def _packed(work: Work, tensors: Sequence[int]) -> Iterator[list[int]]:
    """Yield the tensors in packs: of one row each, and of at most a block's elements."""
    pack: list[int] = []
    size = 0
    for tensor in sorted(tensors, key=work.row.__getitem__):
        extent = work.params[tensor].size
        if pack and (work.row[pack[0]] != work.row[tensor] or size + extent > BLOCK_ELEMENTS):
            yield pack
            pack, size = [], 0
        if extent:
            pack.append(tensor)
            size += extent
    if pack:
        yield pack


def _as_bytes(array: Any) -> Any:
    return memoryview(array.reshape(-1).view(np.uint8))


def _joined(arrays: Sequence[Any]) -> Any:
    """Return the arrays as one, if they lie side by side in one buffer, else None."""
    base = arrays[0].base
    if not (
        isinstance(base, np.ndarray) and base.flags.c_contiguous and base.dtype == arrays[0].dtype
    ):
        return None
    starts = [address(array) for array in arrays]
    ends = [start + array.nbytes for start, array in zip(starts, arrays, strict=True)]
    if starts[1:] != ends[:-1] or any(array.base is not base for array in arrays):
        return None
    first, last = ((at - address(base)) // base.itemsize for at in (starts[0], ends[-1]))
    return base.reshape(-1)[first:last]


def _flatten(array: Any) -> Any:
    """Return a one-dimensional view of a contiguous array, in the order of its memory."""
    return array.reshape(-1, order="C" if array.flags.c_contiguous else "F")


def elements_of_a_flat_block(elements: int) -> int:
    """Return how many elements blocks of contiguous arrays have, of so many in all."""
    if compiled.mode() == "numpy":
        return BLOCK_ELEMENTS
    return max(BLOCK_ELEMENTS, min(COMPILED_ELEMENTS, elements // FEWEST_BLOCKS))


def _regions(shape: tuple[int, ...], flat: bool, most: int) -> Iterator[Region]:
    """Yield regions that cover an array, each of a block's elements; ``most`` of a flat one."""
    if flat:
        size = int(np.prod(shape))
        for start in range(0, size, most):
            yield slice(start, min(start + most, size))
        return
    pending: list[tuple[slice, ...]] = [tuple(slice(0, extent) for extent in shape)]
    while pending:
        region = pending.pop()
        extents = [part.stop - part.start for part in region]
        if np.prod(extents) <= BLOCK_ELEMENTS:
            if all(extents):
                yield region
            continue
        axis = int(np.argmax(extents))
        part = region[axis]
        middle = (part.start + part.stop) // 2
        halves = slice(part.start, middle), slice(middle, part.stop)
        pending += [(*region[:axis], half, *region[axis + 1 :]) for half in halves]
