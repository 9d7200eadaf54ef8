"""Canonical sums on the CPU: by compiled code as soon as it is there, else by NumPy."""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table
from lucid_gpu.device.arrays import C_ORDER
from lucid_gpu.execution import building, sums, threads
from lucid_gpu.execution.compiled import HEAD_BYTES, LOOK
from lucid_gpu.execution.cpu_code import cpu_code, look_for_build
from lucid_gpu.execution.plan import CHUNK_ELEMENTS
from lucid_gpu.execution.sources import joined

BLOCK_CHUNKS = 32
"""Chunks that NumPy measures at a time: as float64, a megabyte."""

THREAD_ELEMENTS = 1 << 17
"""Elements below which another thread costs more than it saves."""

ARGUMENT = np.dtype(
    [(name, "u8") for name in ("chunks", "grads", "layouts", "types", "axes", "sums", "counts")]
    + [("count", "i8"), ("next", "i8")]
)
"""What compiled code is called with: ``HostMeasured`` of ``kernels/host_measure.cuh``."""


def source() -> str:
    """Return the text whose library measures chunks."""
    return joined("rule", "half", "sums", "host_look", "host_measure")


class CpuSums:
    """Sums of squares of NumPy arrays, and counts of their elements that are not finite.

    Args:
        sizes: how many elements each gradient has.
        dtypes: of each, as :func:`sums.is_measurable` says.

    Attributes:
        sums: of each gradient, float64.
        counts: of elements that are not finite, of each gradient, int64.
        total: the sums, folded: an array of one element.
        total_count: the counts added up, likewise.
    """

    def __init__(self, sizes: Sequence[int], dtypes: Sequence[np.dtype[Any]]) -> None:
        names = list(sums.TYPES)
        self._types = np.array([names.index(dtype.name) for dtype in dtypes], np.int32)
        self._plan = sums.plan_sums(sizes, dtypes)
        chunks = len(self._plan.chunks)
        self._chunk_sums = np.zeros(chunks)
        self._chunk_counts = np.zeros(chunks, np.int64)
        elements = int(np.sum(np.array(sizes, np.int64)))
        self._most_threads = max(1, elements // THREAD_ELEMENTS)
        self._build: building.Build | None = None
        self._compiled: _CompiledSums | None = None
        self._blocks: list[_Block] | None = None
        self._grads: list[Any] = []
        self.sums, self.counts = np.zeros(len(sizes)), np.zeros(len(sizes), np.int64)
        self.total, self.total_count = np.zeros(1), np.zeros(1, np.int64)

    def take(self, grads: Sequence[Any]) -> None:
        """Take the gradients of the next run; None counts as zeros."""
        self._grads = list(grads)

    def run(self) -> None:
        """Measure the gradients that were taken, and let them go.

        Raises:
            RuntimeError: compiled code was chosen and cannot be built.
            ValueError: an environment variable is set to something that it cannot be.
        """
        grads, self._grads = self._grads, []
        count = min(threads.thread_count(), self._most_threads)
        choice = cpu_code()
        if choice != "numpy" and self._compiled is None:
            self._compiled = self._look_for_code(choice)
        if choice != "numpy" and self._compiled is not None:
            self._compiled.run(grads, count)
        else:
            self._run_numpy(grads, count)
        pages = sums.fold(self._chunk_sums, self._plan.pages)
        self.sums[:] = sums.fold(pages, self._plan.tensors)
        self.total[:] = sums.fold(self.sums, np.array([[0, len(self.sums)]]))
        page_counts = sums.fold_counts(self._chunk_counts, self._plan.pages)
        self.counts[:] = sums.fold_counts(page_counts, self._plan.tensors)
        self.total_count[:] = self.counts.sum()

    def _look_for_code(self, choice: str) -> _CompiledSums | None:
        self._build = build = look_for_build(source(), choice, self._build, "use")
        if build.library is None:
            return None
        results = self._chunk_sums, self._chunk_counts
        return _CompiledSums(build.library, self._plan, self._types, *results)

    def _run_numpy(self, grads: list[Any], count: int) -> None:
        if self._blocks is None:
            self._blocks = _blocks(self._plan.chunks)
        waiting = deque(self._blocks)

        def work(waiting: deque[_Block]) -> None:
            buffer = np.empty((BLOCK_CHUNKS, CHUNK_ELEMENTS))
            with np.errstate(all="ignore"):
                while True:
                    try:
                        block = waiting.popleft()
                    except IndexError:
                        return
                    own = slice(block.begin, block.end)
                    found = _measured(block, grads, buffer)
                    self._chunk_sums[own], self._chunk_counts[own] = found

        threads.together(min(count, max(1, len(waiting))), work, waiting)


class _CompiledSums:
    """The tables that compiled code walks."""

    def __init__(
        self,
        library: ctypes.CDLL,
        plan: sums.SumPlan,
        types: npt.NDArray[np.int32],
        chunk_sums: npt.NDArray[np.float64],
        chunk_counts: npt.NDArray[np.int64],
    ) -> None:
        self._measure = library.measure_chunks
        self._measure.argtypes, self._measure.restype = [ctypes.c_void_p], None
        self._look = LOOK(("look", library))
        self._layouts = sums.Layouts()
        self._argument = np.zeros((), ARGUMENT)
        self._place = self._argument.ctypes.data
        self._kept = {
            "chunks": plan.chunks,
            "grads": np.zeros(len(types), np.uint64),
            "layouts": np.zeros(len(types), np.int32),
            "types": types,
            "sums": chunk_sums,
            "counts": chunk_counts,
        }
        for name, array in self._kept.items():
            self._argument[name] = array.ctypes.data
        self._argument["count"] = len(plan.chunks)

    def run(self, grads: list[Any], count: int) -> None:
        """Measure all chunks on so many threads."""
        own = self._kept["grads"]
        named = gradient_table.identities(grads)
        orders = np.empty(len(grads), np.uint8)
        places = named.ctypes.data, own.ctypes.data, orders.ctypes.data
        self._look(places[0], len(grads), HEAD_BYTES, *places[1:])
        others = np.flatnonzero((named != 0) & ((orders & C_ORDER) == 0)).tolist()
        self._kept["layouts"][:] = 0
        self._kept["layouts"][others] = self._layouts.numbers([grads[i] for i in others])
        self._argument["axes"] = self._layouts.records.ctypes.data
        self._argument["next"] = 0
        threads.together(count, self._measure, self._place)


class _Piece(NamedTuple):
    """Neighbouring elements of a tensor, and where their chunks lie in a block."""

    tensor: int
    start: int
    stop: int
    place: int
    chunks: int


class _Block(NamedTuple):
    """Neighbouring chunks, of one tensor or of many."""

    begin: int
    end: int
    pieces: list[_Piece]


def _blocks(chunks: np.ndarray[Any, Any]) -> list[_Block]:
    blocks = []
    for begin in range(0, len(chunks), BLOCK_CHUNKS):
        own = chunks[begin : begin + BLOCK_CHUNKS]
        pieces: list[_Piece] = []
        place = 0
        for tensor, group in groupby(own.tolist(), key=lambda chunk: chunk[1]):
            members = list(group)
            start, stop = members[0][0], members[-1][0] + members[-1][2]
            pieces.append(_Piece(tensor, start, stop, place, len(members)))
            place += len(members)
        blocks.append(_Block(begin, begin + len(own), pieces))
    return blocks


def _measured(
    block: _Block, grads: list[Any], buffer: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the sum and the count of each chunk of a block."""
    count = block.end - block.begin
    for piece in block.pieces:
        target = buffer[piece.place : piece.place + piece.chunks].reshape(-1)
        size = 0
        if grads[piece.tensor] is not None:
            size = piece.stop - piece.start
            target[:size] = _elements(grads[piece.tensor], piece)
        target[size:] = 0
    found = sums.of_squares(buffer[:count])
    counts = np.zeros(count, np.int64)
    if not np.isfinite(found).all():  # as all are, if the elements are
        for piece in block.pieces:
            if grads[piece.tensor] is not None:
                counts[piece.place : piece.place + piece.chunks] = _nonfinite(
                    _elements(grads[piece.tensor], piece), piece.chunks
                )
    return found, counts


def _nonfinite(elements: Any, chunks: int) -> npt.NDArray[np.int64]:
    """Return how many elements of each chunk are not finite."""
    are_so = np.zeros(chunks * CHUNK_ELEMENTS, np.bool_)
    are_so[: len(elements)] = ~np.isfinite(elements)
    counts: npt.NDArray[np.int64] = are_so.reshape(chunks, -1).sum(axis=1)
    return counts


def _elements(grad: Any, piece: _Piece) -> Any:
    """Return elements in C order: a view if the gradient is contiguous, else a copy."""
    if grad.flags.c_contiguous:
        return grad.reshape(-1)[piece.start : piece.stop]
    return grad.flat[piece.start : piece.stop]
