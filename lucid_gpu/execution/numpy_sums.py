"""Runs the NumPy twin of a rule where sums are taken: of two phases, or of a step that tells."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.execution import formats, plan, sums, threads, twin
from lucid_gpu.execution.blocks import THREAD_ELEMENTS
from lucid_gpu.execution.cpu_totals import Totals
from lucid_gpu.execution.plan import CHUNK_ELEMENTS, TensorGroup


class _Block(NamedTuple):
    """Neighbouring elements of a tensor in C order.

    Attributes:
        chunk: the number of the first of their chunks.
    """

    tensor: int
    start: int
    stop: int
    chunk: int


class SummingStep:
    """Steps NumPy arrays by the twin of their rule, in blocks of whole chunks in C order.

    Blocks and threads do not change the result.

    Args:
        tensors: the arrays.
        watched: where it leaves what a step tells; None for steps that do not.
    """

    def __init__(self, tensors: TensorGroup, watched: Totals | None = None) -> None:
        self._tensors = tensors
        self._rows = twin.RowValues(tensors)
        sizes = [param.size for param in tensors.params]
        self._totals = Totals(sizes, len(tensors.rule.sums))
        self._watched = watched
        self._grads: Sequence[Any] = []
        self._present = np.zeros(len(tensors.params), np.bool_)
        self._row_of: list[int] = []
        self._blocks = list(_blocks(sizes))

    def take_gradients(self, grads: list[Any], present: npt.NDArray[np.bool_]) -> None:
        """Take the gradients of the next run, and which tensors it is to update."""
        self._grads, self._present = grads, present

    def lend(self, grads: Sequence[Any]) -> None:
        """Take for the next run gradients that are those of the last run."""
        self._grads = grads

    def renew(self, tensors: Sequence[int]) -> bool:  # noqa: ARG002 - others keep views of arrays
        """Return that other arrays ask for nothing: they are looked at in each run."""
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
            most_threads: how many may step.
            factor: of the gradients.
        """
        self._rows.set(rows, factor)
        self._row_of = row_of.tolist()
        blocks = [block for block in self._blocks if self._present[block.tensor]]
        elements = sum(block.stop - block.start for block in blocks)
        count = max(1, min(most_threads, len(blocks), elements // THREAD_ELEMENTS))
        try:
            if self._tensors.rule.sums:
                threads.together(count, partial(self._run_blocks, self._measure), deque(blocks))
                self._totals.fold()
            threads.together(count, partial(self._run_blocks, self._move), deque(blocks))
        finally:
            self._grads = []

    def _run_blocks(self, phase: Callable[[_Block, _Part], None], blocks: deque[_Block]) -> None:
        # A GPU raises no floating-point warnings either; NaN and infinity pass through.
        with np.errstate(all="ignore"):
            while True:
                try:
                    block = blocks.popleft()
                except IndexError:
                    return
                steps = partial(self._rows.steps, self._row_of[block.tensor])
                phase(block, _Part(self._tensors, block, self._grads[block.tensor], steps))

    def _measure(self, block: _Block, part: _Part) -> None:
        row = self._rows[self._row_of[block.tensor]]
        measured = twin.measure(self._tensors, part.variant, row, part.values)
        if self._tensors.rule.slots_move_first:
            part.write_slots()
        _add_up(self._totals, block, measured)

    def _move(self, block: _Block, part: _Part) -> None:
        row, rule = self._rows[self._row_of[block.tensor]], self._tensors.rule
        before = part.values[0].copy() if self._watched is not None else None
        sizes = []
        if rule.sums:
            totals = self._totals.totals[block.tensor]
            sizes.append(twin.finish(self._tensors, part.variant, row, totals))
        twin.update(self._tensors, part.variant, row, part.values, *sizes)
        if self._watched is not None:
            after = part.values[0]
            _add_up(self._watched, block, [after, after - before])
        part.write_param()
        if not (rule.sums and rule.slots_move_first):
            part.write_slots()


def _add_up(totals: Totals, block: _Block, kinds: Sequence[Any]) -> None:
    """Leave the sums of squares of each chunk of a block, for values of each kind."""
    count = -(-(block.stop - block.start) // CHUNK_ELEMENTS)
    chunks = np.empty((count, CHUNK_ELEMENTS))
    flat = chunks.reshape(-1)
    for own, values in zip(totals.chunks, kinds, strict=True):
        flat[: len(values)] = values
        flat[len(values) :] = 0
        own[block.chunk : block.chunk + count] = sums.of_squares(chunks)


class _Part:
    """The arrays of a block.

    Attributes:
        variant: of the rule.
        values: of parameter, gradient and slots, in the dtype that computes.
    """

    def __init__(
        self, tensors: TensorGroup, block: _Block, grad: Any, steps: Callable[[], int]
    ) -> None:
        self._tensors, self._block, self._steps = tensors, block, steps
        self.variant = tensors.variants[block.tensor]
        self._arrays = tensors.arrays(block.tensor)
        self._own = [_cut(array, block) for array in self._arrays]
        param, *others = self._own
        self._stored: formats.Stored | None = None
        storage, given = tensors.storage, _cut(grad, block)
        if storage.is_uniform:
            self.values = [param, given, *others]
            return
        self._stored = stored = formats.Stored(storage, param, others)
        read = [formats.values(array, storage.compute) for array in (given, *stored.slots)]
        self.values = [stored.param(), *read]

    def write_param(self) -> None:
        """Store the value of the parameter."""
        if self._stored is not None:
            self._stored.write_param(self.values[0], self._random)
        self._put_back()

    def write_slots(self) -> None:
        """Store the values of the slots."""
        if self._stored is not None:
            self._stored.write_slots(self.values[2:], self._random)
        self._put_back()

    def _put_back(self) -> None:
        for array, own in zip(self._arrays, self._own, strict=True):
            if not array.flags.c_contiguous:
                array.flat[self._block.start : self._block.stop] = own

    def _random(self, position: int) -> formats.Bits:
        """Return the random bits of the parameter, at position 0, or of a slot in use."""
        tensors, block = self._tensors, self._block
        number = plan.random_number(tensors.rule, self.variant, position)
        stream = tensors.streams[block.tensor] + number
        elements = np.arange(block.start, block.stop)
        return formats.random_bits(tensors.seed, self._steps(), stream, elements)


def _cut(array: Any, block: _Block) -> Any:
    """Return the elements of a block: a view if the array is contiguous, else a copy."""
    if array.flags.c_contiguous:
        return array.reshape(-1)[block.start : block.stop]
    return array.flat[block.start : block.stop]


def _blocks(sizes: Sequence[int]) -> Iterator[_Block]:
    chunk = 0
    for tensor, size in enumerate(sizes):
        for start in range(0, size, twin.BLOCK_ELEMENTS):
            stop = min(start + twin.BLOCK_ELEMENTS, size)
            yield _Block(tensor, start, stop, chunk)
            chunk += -(-(stop - start) // CHUNK_ELEMENTS)
