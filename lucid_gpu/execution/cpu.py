"""Runs the NumPy twin of a rule, in blocks that stay in cache, on threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.execution.plan import Work, common_layout

BLOCK_ELEMENTS = 1 << 16
"""Elements of a block. Measured best with 1 MiB of L2 cache per core."""

Region: TypeAlias = Any
"""What cuts a block out of an array: a slice of a flattened one, or a tuple of slices."""


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


class CpuExecutor:
    """Steps NumPy arrays. The result does not depend on blocks or threads.

    Attributes:
        needs_gradients: each run forgets its gradients, so that their memory is free as soon as
            the training loop lets go of them; the next run wants them again.
    """

    needs_gradients = True

    def __init__(self, work: Work) -> None:
        self._work = work
        self._blocks: list[tuple[int, Region, tuple[Any, ...]]] = []
        self._flat: list[bool] = []
        for tensor, (param, slots) in enumerate(zip(work.params, work.slots, strict=True)):
            flat = common_layout((param, work.grads[tensor], *slots)) != 0
            self._flat.append(flat)
            own = [_flatten(array) if flat else array for array in (param, *slots)]
            for region in _regions(own[0].shape):
                param_block, *slot_blocks = (array[region] for array in own)
                self._blocks.append((tensor, region, (param_block, slot_blocks)))
        self._grads = self._flattened(work.grads)
        work.grads = []

    def replace_gradients(self, grads: Sequence[Any]) -> bool:
        """Take other gradient arrays from now on; False if their layout asks for a new executor."""
        for tensor, grad in enumerate(grads):
            arrays = (self._work.params[tensor], grad, *self._work.slots[tensor])
            flat = common_layout(arrays) != 0
            if flat != self._flat[tensor]:
                return False
        self._grads = self._flattened(grads)
        return True

    def run(self, scalars: Sequence[Any]) -> None:
        """Update every tensor, with one tuple of scalars for each row."""
        work = self._work
        rounded = [type(row)(*map(work.dtype.type, row)) for row in scalars]
        blocks = iter(self._blocks)
        workers = min(thread_count(), len(self._blocks))
        try:
            self._run_on_threads(blocks, rounded, max(workers, 1))
        finally:
            self._grads = []

    def _run_on_threads(self, blocks: Iterator[Any], rounded: list[Any], workers: int) -> None:
        if workers == 1:
            self._run_blocks(blocks, rounded)
            return
        pool = _pool(workers - 1, os.getpid())
        shared = _Shared(blocks)
        others = [pool.submit(self._run_blocks, shared, rounded) for _ in range(workers - 1)]
        try:
            self._run_blocks(shared, rounded)
        finally:
            errors = [other.exception() for other in others]
        for error in errors:
            if error is not None:
                raise error

    def _run_blocks(self, blocks: Iterator[Any], scalars: Sequence[Any]) -> None:
        work = self._work
        update, padding = work.rule.update, len(work.rule.slots)
        # A GPU raises no floating-point warnings either; NaN and infinity pass through.
        with np.errstate(all="ignore"):
            for tensor, region, (param, slots) in blocks:
                row = work.row[tensor]
                spare = (None,) * (padding - len(slots))
                scratch = _scratch(work.rule.scratch, work.dtype, param.shape)
                grad = self._grads[tensor][region]
                update(scalars[row], work.variants[row], param, grad, *slots, *spare, *scratch)

    def _flattened(self, grads: Sequence[Any]) -> list[Any]:
        return [
            _flatten(grad) if flat else grad for grad, flat in zip(grads, self._flat, strict=True)
        ]


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


def _scratch(count: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return uninitialized arrays of a shape, from memory that this thread keeps."""
    kept: dict[tuple[int, np.dtype[Any]], Any] = _local.__dict__.setdefault("scratch", {})
    if (count, dtype) not in kept:
        kept[count, dtype] = np.empty((count, BLOCK_ELEMENTS), dtype)
    size = int(np.prod(shape))
    return [memory[:size].reshape(shape) for memory in kept[count, dtype]]


def _flatten(array: Any) -> Any:
    """Return a one-dimensional view of a contiguous array, in the order of its memory."""
    return array.reshape(-1, order="C" if array.flags.c_contiguous else "F")


def _regions(shape: tuple[int, ...]) -> Iterator[Region]:
    """Yield regions that cover an array of this shape, each of at most a block's elements."""
    if len(shape) == 1:
        for start in range(0, shape[0], BLOCK_ELEMENTS):
            yield slice(start, min(start + BLOCK_ELEMENTS, shape[0]))
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
