"""Runs the NumPy twin of a rule: in blocks that stay in cache, on threads."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import C_ORDER, contiguity
from lucid_gpu.execution import formats, packs, plan, threads, twin
from lucid_gpu.execution.plan import TensorGroup, common_layout

THREAD_ELEMENTS = 1 << 15
"""Elements below which another thread costs more than it saves."""

Region: TypeAlias = Any
"""What cuts a block out of an array: a slice of a flattened one, or a tuple of slices."""

Job: TypeAlias = "_Block | packs.Pack"


class NumpyStep:
    """Steps NumPy arrays by the twin of their rule. Blocks and threads do not change the result.

    Args:
        tensors: the arrays.
    """

    def __init__(self, tensors: TensorGroup) -> None:
        self._tensors = tensors
        self._blocks_of: dict[int, list[_Block]] = {}
        self._layouts = [self._layout(tensor) for tensor in range(len(tensors.params))]
        self._is_small = [self._may_pack(tensor) for tensor in range(len(tensors.params))]
        self._segments = [packs.Segment(own) for own in packs.segments(tensors, self._is_small)]
        self._alone = [i for i, is_small in enumerate(self._is_small) if not is_small]
        self._is_flat = [False] * len(tensors.params)
        self._jobs: list[Job] = []
        self._row_of: npt.NDArray[np.int32] | None = None
        self._present: npt.NDArray[np.bool_] | None = None
        self._most_threads = 1
        self._rows = twin.RowValues(tensors)
        self._grads: Sequence[Any] = []

    def take_gradients(self, grads: list[Any], present: npt.NDArray[np.bool_]) -> None:
        """Take the gradients of the next run, and which tensors it is to update."""
        for tensor in chain(self._alone, *(segment.alone for segment in self._segments)):
            if present[tensor]:
                is_flat = (self._layouts[tensor] & contiguity(grads[tensor])) != 0
                if is_flat != self._is_flat[tensor]:
                    self._is_flat[tensor] = is_flat
                    self._forget(tensor)
        if self._present is None or present.tobytes() != self._present.tobytes():
            self._present = present
            self._row_of = None
        self._grads = grads

    def lend(self, grads: Sequence[Any]) -> None:
        """Take for the next run gradients that are those of the last run."""
        self._grads = grads

    def renew(self, tensors: Sequence[int]) -> bool:
        """Look anew at the arrays of some tensors; False if that asks for another step."""
        for tensor in tensors:
            self._layouts[tensor] = self._layout(tensor)
            if self._may_pack(tensor) != self._is_small[tensor]:
                return False
            self._forget(tensor)
            for segment in self._segments:
                segment.forget(tensor)
        return True

    def run(
        self,
        rows: npt.NDArray[Any],
        row_of: npt.NDArray[np.int32],
        most_threads: int,
        factor: float = 1.0,
    ) -> None:
        """Update the tensors whose gradients were taken, with the scalars of their rows.

        Args:
            rows: the scalars of each row.
            row_of: for each tensor, its row.
            most_threads: how many threads may run.
            factor: of the gradients.
        """
        self._rows.set(rows, factor)
        if row_of is not self._row_of:
            self._assign(row_of)
        try:
            count = min(most_threads, self._most_threads)
            jobs = iter(self._jobs)
            threads.together(count, self._run_jobs, jobs if count == 1 else _Shared(jobs))
        finally:
            self._grads = []

    def _layout(self, tensor: int) -> int:
        return common_layout(self._tensors.arrays(tensor)) & self._tensors.orders

    def _may_pack(self, tensor: int) -> bool:
        is_small = (
            packs.fits_a_pack(self._tensors.params[tensor]) and self._tensors.storage.is_uniform
        )
        return is_small and bool(self._layouts[tensor] & C_ORDER)

    def _forget(self, tensor: int) -> None:
        self._blocks_of.pop(tensor, None)
        self._row_of = None

    def _assign(self, row_of: npt.NDArray[np.int32]) -> None:
        """Find the jobs of a run, in which each tensor takes the scalars of its row."""
        present = self._present
        assert present is not None
        jobs: list[Job] = []
        for tensor in self._alone:
            if present[tensor]:
                jobs += self._blocks(tensor, row_of)
        rows = np.where(present, row_of, packs.ABSENT)
        for segment in self._segments:
            alone = segment.assign(rows, self._tensors)
            jobs += segment.packs
            for tensor in alone:
                self._is_flat[tensor] = (
                    self._layouts[tensor] & contiguity(self._grads[tensor])
                ) != 0
                self._blocks_of.pop(tensor, None)
                jobs += self._blocks(tensor, row_of)
        params = self._tensors.params
        elements = sum(param.size for param, is_on in zip(params, present, strict=True) if is_on)
        # Each further thread must find enough to do.
        self._most_threads = max(1, min(len(jobs), -(-elements // THREAD_ELEMENTS)))
        self._jobs, self._row_of = jobs, row_of

    def _blocks(self, tensor: int, row_of: npt.NDArray[np.int32]) -> list[_Block]:
        if tensor not in self._blocks_of:
            flat = self._is_flat[tensor]
            self._blocks_of[tensor] = [
                _Block(self._tensors, tensor, region, flat)
                for region in _regions(self._tensors.params[tensor].shape, flat)
            ]
        for block in self._blocks_of[tensor]:
            block.row = int(row_of[tensor])
        return self._blocks_of[tensor]

    def _run_jobs(self, jobs: Iterator[Job]) -> None:
        # A GPU raises no floating-point warnings either; NaN and infinity pass through.
        with np.errstate(all="ignore"):
            for job in jobs:
                job.run(self._grads, self._rows)


class _Block:
    """A part of one tensor, updated where it lies.

    Attributes:
        row: whose scalars it takes.
    """

    row = 0

    def __init__(self, tensors: TensorGroup, tensor: int, region: Region, flat: bool) -> None:
        self._tensors, self._tensor, self._region, self._flat = tensors, tensor, region, flat
        self._variant = tensors.variants[tensor]
        self._is_uniform = tensors.storage.is_uniform
        self._param, *self._slots = map(self._cut, tensors.arrays(tensor))

    def run(self, grads: Sequence[Any], rows: twin.RowValues) -> None:
        storage = self._tensors.storage
        grad = self._cut(grads[self._tensor])
        if self._is_uniform:
            arrays = [self._param, grad, *self._slots]
            twin.update(self._tensors, self._variant, rows[self.row], arrays)
            return
        stored = formats.Stored(storage, self._param, self._slots)
        slots = [formats.values(slot, storage.compute) for slot in stored.slots]
        param, grad = stored.param(), formats.values(grad, storage.compute)
        twin.update(self._tensors, self._variant, rows[self.row], [param, grad, *slots])
        stored.write(param, slots, partial(self._random, rows))

    def _random(self, rows: twin.RowValues, position: int) -> formats.Bits:
        """Return the random bits of the parameter, at position 0, or of a slot in use."""
        tensors, shape = self._tensors, self._param.shape
        number = plan.random_number(tensors.rule, self._variant, position)
        stream = tensors.streams[self._tensor] + number
        whole = tensors.params[self._tensor]
        if self._flat:
            elements = np.arange(self._region.start, self._region.stop)
        else:
            elements = np.zeros(shape, np.int64)
            for axis, part in enumerate(self._region):
                step = math.prod(whole.shape[axis + 1 :])
                along = step * np.arange(part.start, part.stop)
                elements += along.reshape(-1, *[1] * (len(shape) - axis - 1))
        steps = rows.steps(self.row)
        return formats.random_bits(tensors.seed, steps, stream, elements.reshape(-1)).reshape(shape)

    def _cut(self, array: Any) -> Any:
        return (_flatten(array) if self._flat else array)[self._region]


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


def _flatten(array: Any) -> Any:
    """Return a one-dimensional view of a contiguous array, in the order of its memory."""
    return array.reshape(-1, order="C" if array.flags.c_contiguous else "F")


def _regions(shape: tuple[int, ...], flat: bool) -> Iterator[Region]:
    """Yield regions of a block's elements that cover an array, flattened or not."""
    if flat:
        size, most = int(np.prod(shape)), twin.BLOCK_ELEMENTS
        for start in range(0, size, most):
            yield slice(start, min(start + most, size))
        return
    pending: list[tuple[slice, ...]] = [tuple(slice(0, extent) for extent in shape)]
    while pending:
        region = pending.pop()
        extents = [part.stop - part.start for part in region]
        if np.prod(extents) <= twin.BLOCK_ELEMENTS:
            if all(extents):
                yield region
            continue
        axis = int(np.argmax(extents))
        part = region[axis]
        middle = (part.start + part.stop) // 2
        halves = slice(part.start, middle), slice(middle, part.stop)
        pending += [(*region[:axis], half, *region[axis + 1 :]) for half in halves]
