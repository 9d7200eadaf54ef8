"""Runs a rule on the CPU, in blocks that stay in cache, on threads.

Blocks are updated by the rule's NumPy twin or, if asked for, to the same bits by compiled code:
see :mod:`lucid_gpu.execution.compiled`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from itertools import chain, pairwise, repeat
from operator import getitem, setitem
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import C_ORDER, address, contiguity, device_of
from lucid_gpu.execution import compiled
from lucid_gpu.execution.plan import TensorGroup, common_layout, row_fields
from lucid_gpu.execution.rule import FrameScalars, Rule

BLOCK_ELEMENTS = 1 << 17
"""Elements of a block. Measured best with 1 MiB of L2 cache per core."""

COMPILED_ELEMENTS = 1 << 19
"""Elements of a block of compiled code, at most. It passes once, so that caches do not matter, and
each turn through the interpreter makes the other threads wait."""

FEWEST_BLOCKS = 16
"""Into which compiled code cuts its work: enough for the threads to end together."""

PACKED_ELEMENTS = 1 << 12
"""Up to this size, copying a tensor into a block with others costs less than a block of its own."""

SEGMENT_TENSORS = 1024
"""Up to so many tensors are stepped together: when one of them is missing, all are looked at."""

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

    Args:
        tensors: the arrays.
        grads: the gradient of each, or None.

    Attributes:
        needs_gradients: each run forgets its gradients, so that their memory is free as soon as
            the training loop lets go of them; the next run wants them again.
    """

    needs_gradients = True

    def __init__(self, tensors: TensorGroup, grads: Sequence[Any]) -> None:
        self._tensors = tensors
        for variant in set(tensors.variants):
            _code(tensors, variant)  # what may fail does so while all is unharmed
        self._blocks_of: dict[int, list[_Block]] = {}
        self._layouts = [self._layout(tensor) for tensor in range(len(tensors.params))]
        self._is_small = [self._may_pack(tensor) for tensor in range(len(tensors.params))]
        self._segments = [_Segment(own) for own in _segments(tensors, self._is_small)]
        self._alone = [i for i, is_small in enumerate(self._is_small) if not is_small]
        self._is_flat = [False] * len(tensors.params)
        self._jobs: list[Job] = []
        self._row_of: npt.NDArray[np.int32] | None = None
        self._most_workers = 1
        self._rows = _RowValues(tensors)
        self._grads: list[Any] = []
        self.replace_gradients(grads)

    def replace_gradients(self, grads: Sequence[Any]) -> bool:
        """Take the gradients of the next run; None stands for a tensor that is left out."""
        self._threads = thread_count()  # a wrong number of them is refused while all is unharmed
        for tensor in chain(self._alone, *(segment.alone for segment in self._segments)):
            grad = grads[tensor]
            if grad is not None:
                is_flat = (self._layouts[tensor] & contiguity(grad)) != 0
                if is_flat != self._is_flat[tensor]:
                    self._is_flat[tensor] = is_flat
                    self._forget(tensor)
        self._grads = list(grads)
        return True

    def renew(self, tensors: Sequence[int]) -> bool:
        """Look anew at the arrays of some tensors; False if that asks for a new executor."""
        for tensor in tensors:
            self._layouts[tensor] = self._layout(tensor)
            if self._may_pack(tensor) != self._is_small[tensor]:
                return False
            self._forget(tensor)
            for segment in self._segments:
                segment.forget(tensor)
        return True

    def run(self, rows: Sequence[tuple[float, ...]], row_of: npt.NDArray[np.int32]) -> None:
        """Update every tensor that has a gradient.

        Args:
            rows: the scalars of each row.
            row_of: for each tensor, its row; another array if any is another than before.
        """
        self._rows.set(rows)
        if row_of is not self._row_of:
            self._assign(row_of)
        try:
            self._run_on_threads()
        finally:
            self._grads = []

    def _layout(self, tensor: int) -> int:
        return common_layout(self._tensors.arrays(tensor))

    def _may_pack(self, tensor: int) -> bool:
        is_small = fits_a_pack(self._tensors.params[tensor]) and self._tensors.storage.is_uniform
        return is_small and bool(self._layouts[tensor] & C_ORDER)

    def _forget(self, tensor: int) -> None:
        self._blocks_of.pop(tensor, None)
        self._row_of = None

    def _assign(self, row_of: npt.NDArray[np.int32]) -> None:
        """Find the jobs of a run, in which each tensor takes the scalars of its row."""
        present = [grad is not None for grad in self._grads]
        jobs: list[Job] = []
        for tensor in self._alone:
            if present[tensor]:
                jobs += self._blocks(tensor, row_of)
        rows = np.where(present, row_of, ABSENT)
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
        self._most_workers = max(1, min(len(jobs), -(-elements // THREAD_ELEMENTS)))
        self._jobs, self._row_of = jobs, row_of

    def _blocks(self, tensor: int, row_of: npt.NDArray[np.int32]) -> list[_Block]:
        if tensor not in self._blocks_of:
            most = elements_of_a_flat_block(sum(param.size for param in self._tensors.params))
            flat = self._is_flat[tensor]
            self._blocks_of[tensor] = [
                _Block(self._tensors, tensor, region, flat)
                for region in _regions(self._tensors.params[tensor].shape, flat, most)
            ]
        for block in self._blocks_of[tensor]:
            block.row = int(row_of[tensor])
        return self._blocks_of[tensor]

    def _run_on_threads(self) -> None:
        jobs, workers = iter(self._jobs), min(self._threads, self._most_workers)
        if workers == 1:
            self._run_jobs(jobs)
            return
        shared = _Shared(jobs)
        others = _submitted(workers - 1, self._run_jobs, shared)
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
                job.run(self._grads, self._rows)


IDLE = FrameScalars()
"""The scalars of a frame that does nothing."""


class _RowValues:
    """The scalars of all rows, rounded once, and what updates a block with them."""

    def __init__(self, tensors: TensorGroup) -> None:
        self._rule, self._dtype = tensors.rule, tensors.storage.compute
        self._values = np.zeros((0, len(row_fields(tensors.rule))), self._dtype)
        self._rows: list[tuple[FrameScalars, Any]] = []
        self._is_idle: list[bool] = []

    def set(self, rows: Sequence[tuple[float, ...]]) -> None:
        """Take the scalars of the next run."""
        if len(rows) > len(self._values):
            self._values = np.zeros((len(rows), self._values.shape[1]), self._dtype)
            # Views without dimensions: ufuncs take them in half the time of NumPy's scalars.
            split = len(FrameScalars._fields)
            views = [[own[i, ...] for i in range(len(own))] for own in self._values]
            self._rows = [
                (FrameScalars(*own[:split]), self._rule.Scalars(*own[split:])) for own in views
            ]
        values = np.fromiter(chain.from_iterable(rows), self._dtype)
        self._values.reshape(-1)[: len(values)] = values
        self._is_idle = [row[: len(IDLE)] == IDLE for row in rows]

    def __getitem__(self, row: int) -> tuple[FrameScalars | None, Any]:
        """Return what the frame does, None if nothing, and the scalars of the rule."""
        frame, scalars = self._rows[row]
        return (None if self._is_idle[row] else frame), scalars

    def values(self, row: int) -> Any:
        """Return the scalars of a row as one array."""
        return self._values[row]


def _code(tensors: TensorGroup, variant: Any) -> compiled.Update | None:
    if not tensors.storage.is_uniform:
        return None
    return compiled.compiled_update(tensors.rule, variant, tensors.storage.compute)


def _update(
    tensors: TensorGroup,
    variant: Any,
    row: tuple[FrameScalars | None, Any],
    arrays: Sequence[Any],
) -> None:
    """Update a block of arrays: parameter, gradient and slots, all of the dtype that computes."""
    rule, (frame, scalars) = tensors.rule, row
    param, grad, *slots = arrays
    if frame is not None:
        grad = _framed(rule, frame, param, grad)
    scratch = _scratch(rule.scratch, param.dtype)
    if param.ndim == 1:
        scratch = [memory[: param.size] for memory in scratch]
    else:
        scratch = [_shaped(memory, param) for memory in scratch]
    slots += [None] * (rule.width - len(slots))
    rule.update(scalars, variant, param, grad, *slots, *scratch)


def _framed(rule: Rule, frame: FrameScalars, param: Any, grad: Any) -> Any:
    """Do what the frame does ahead of a rule, and return the gradient that it leaves."""
    # The product may have the rule's own scratch; what the rule is given, an array of its own.
    spare, *_, own = (_shaped(memory, param) for memory in _scratch(rule.scratch + 2, param.dtype))
    if frame.sign != 1:
        grad = np.multiply(frame.sign, grad, out=own)
    if frame.l2 != 0:
        product = np.multiply(frame.l2, param, out=spare)
        grad = np.add(grad, product, out=own)
    if frame.shrink != 1:
        if grad is not own and np.may_share_memory(grad, param):
            grad = np.positive(grad, out=own)
        param *= frame.shrink
    return grad


def _shaped(memory: Any, array: Any) -> Any:
    return memory[: array.size].reshape(array.shape)


class _Block:
    """A part of one tensor, updated where it lies.

    Attributes:
        row: whose scalars it takes.
    """

    row = 0

    def __init__(self, tensors: TensorGroup, tensor: int, region: Region, flat: bool) -> None:
        self._tensors, self._tensor, self._region, self._flat = tensors, tensor, region, flat
        self._variant = tensors.variants[tensor]
        self._code = _code(tensors, self._variant)
        self._param, *self._slots = map(self._cut, tensors.arrays(tensor))

    def run(self, grads: Sequence[Any], rows: _RowValues) -> None:
        stored = [self._param, self._cut(grads[self._tensor]), *self._slots]
        if self._flat and self._code and self._code(rows.values(self.row), *stored):
            return
        if self._tensors.storage.is_uniform:
            _update(self._tensors, self._variant, rows[self.row], stored)
            return
        computed = [array.astype(self._tensors.storage.compute) for array in stored]
        _update(self._tensors, self._variant, rows[self.row], computed)
        param, _, *slots = computed
        for array, values in zip((self._param, *self._slots), (param, *slots), strict=True):
            array[...] = values

    def _cut(self, array: Any) -> Any:
        return (_flatten(array) if self._flat else array)[self._region]


ABSENT = -(1 << 30)
"""Stands for the row of a tensor that has no gradient."""


class _Segment:
    """Small tensors that are neighbours, in packs: of those that step alike.

    Attributes:
        packs: two or more tensors each.
        alone: the members that step unlike all others.
    """

    def __init__(self, members: Sequence[int]) -> None:
        self._members = np.array(members, np.intp)
        self._seen: bytes | None = None
        self._columns: dict[int, list[_Column]] = {}
        self.packs: list[_Pack] = []
        self.alone: list[int] = []

    def forget(self, tensor: int) -> None:
        """Look anew at the arrays of a tensor, if it is a member."""
        if tensor in self._members:
            self._seen = None
            self._columns.clear()

    def assign(self, rows: npt.NDArray[Any], tensors: TensorGroup) -> list[int]:
        """Find the packs of the members by their rows; return members that are alone in theirs."""
        own = rows[self._members]
        # Other numbers of the same rows ask for no other packs.
        seen = np.where(own == ABSENT, ABSENT, own - own.max()).tobytes()
        if seen != self._seen:
            self.alone, self.packs = [], []
            for row in np.unique(own[own != ABSENT]).tolist():
                places = np.flatnonzero(own == row)
                pack = self._members[places].tolist()
                if len(pack) == 1:
                    self.alone += pack
                else:
                    self.packs.append(_Pack(tensors, pack, self._columns_of(pack[0], tensors)))
            self._seen = seen
        for pack in self.packs:
            pack.row = int(rows[pack.first])
        return self.alone

    def _columns_of(self, tensor: int, tensors: TensorGroup) -> list[_Column]:
        """Return the arrays of all members with as many slots as a tensor has."""
        width = len(tensors.arrays(tensor))
        if width not in self._columns:
            own = [i for i in self._members.tolist() if len(tensors.arrays(i)) == width]
            kept = zip(*(tensors.arrays(i) for i in own), strict=True)
            self._columns[width] = [_Column(own, arrays) for arrays in kept]
        return self._columns[width]


class _Column:
    """The parameters of small tensors, or one slot of each."""

    def __init__(self, tensors: Sequence[int], arrays: Sequence[Any]) -> None:
        self._place = {tensor: place for place, tensor in enumerate(tensors)}
        self._arrays = arrays
        self._start = np.array([address(array) for array in arrays], np.int64)
        self._stop = self._start + np.array([array.nbytes for array in arrays], np.int64)
        self._base = np.array([id(array.base) for array in arrays], np.uint64)
        self._bytes: list[Any] | None = None

    def joined(self, tensors: Sequence[int]) -> Any:
        """Return the arrays of some tensors as one, if they are neighbours in a buffer."""
        places = np.array([self._place[tensor] for tensor in tensors], np.intp)
        start, stop, base = self._start[places], self._stop[places], self._base[places]
        if not (np.array_equal(start[1:], stop[:-1]) and (base == base[0]).all()):
            return None
        whole = self._arrays[places[0]].base
        dtype = self._arrays[places[0]].dtype
        if not (
            isinstance(whole, np.ndarray) and whole.flags.c_contiguous and whole.dtype == dtype
        ):
            return None
        first, last = ((int(at) - address(whole)) // whole.itemsize for at in (start[0], stop[-1]))
        return whole.reshape(-1)[first:last]

    def parts(self, tensors: Sequence[int]) -> list[Any]:
        """Return the arrays of some tensors as bytes that can be copied."""
        if self._bytes is None:
            self._bytes = [_as_bytes(array) for array in self._arrays]
        return [self._bytes[self._place[tensor]] for tensor in tensors]


class _Pack:
    """Small tensors, copied together, updated as one, and copied back.

    Arrays that lie side by side in one buffer already are updated there. The others are copied as
    bytes through memory views, which costs Python a fifth of what assigning arrays does.

    Attributes:
        row: whose scalars they take.
        first: one of the tensors.
    """

    row = 0

    def __init__(
        self, tensors: TensorGroup, members: Sequence[int], columns: Sequence[_Column]
    ) -> None:
        self._tensors, self._members, self.first = tensors, members, members[0]
        self._variant = tensors.variants[self.first]
        self._code = _code(tensors, self._variant)
        self._dtype = tensors.storage.compute
        ends = np.cumsum([tensors.params[tensor].nbytes for tensor in members]).tolist()
        self._places = [slice(*bounds) for bounds in pairwise([0, *ends])]
        self._size = ends[-1] // self._dtype.itemsize
        joined = [(column, column.joined(members)) for column in columns]
        self._kept = [
            (whole, [] if whole is not None else column.parts(members)) for column, whole in joined
        ]

    def run(self, grads: Sequence[Any], rows: _RowValues) -> None:
        count = len(self._kept)
        memory = _scratch(self._tensors.rule.scratch + 3 + count, self._dtype)[-1 - count :]
        grad, *arrays = (array[: self._size] for array in memory)
        np.concatenate([grads[tensor] for tensor in self._members], axis=None, out=grad)
        param, *slots = map(self._gathered, self._kept, arrays)
        if not (self._code and self._code(rows.values(self.row), param, grad, *slots)):
            _update(self._tensors, self._variant, rows[self.row], [param, grad, *slots])
        for (joined, parts), array in zip(self._kept, arrays, strict=True):
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


def _submitted(count: int, work: Callable[..., None], jobs: Any) -> list[Future[None]]:
    """Have threads of the pool work too; fewer where the interpreter is about to end."""
    submitted: list[Future[None]] = []
    with contextlib.suppress(RuntimeError):
        pool = _pool(count, os.getpid())
        for _ in range(count):
            submitted.append(pool.submit(work, jobs))  # noqa: PERF401 - those before a failure too
    return submitted


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


def _segments(tensors: TensorGroup, is_small: Sequence[bool]) -> Iterator[list[int]]:
    """Yield the small tensors in segments of at most a block's elements."""
    segment: list[int] = []
    size = 0
    for tensor, param in enumerate(tensors.params):
        if not (is_small[tensor] and param.size):
            continue
        if len(segment) == SEGMENT_TENSORS or (segment and size + param.size > BLOCK_ELEMENTS):
            yield segment
            segment, size = [], 0
        segment.append(tensor)
        size += param.size
    if segment:
        yield segment


def _as_bytes(array: Any) -> Any:
    return memoryview(array.reshape(-1).view(np.uint8))


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
