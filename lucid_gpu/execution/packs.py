"""Packs: small tensors that NumPy copies together, updates as one, and copies back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise, repeat
from operator import getitem, setitem
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import address, device_of
from lucid_gpu.execution import twin
from lucid_gpu.execution.plan import TensorGroup

PACKED_ELEMENTS = 1 << 12
"""Up to this size, copying a tensor into a block with others costs less than a block of its own."""

SEGMENT_TENSORS = 1024
"""Up to so many tensors are stepped together: when one of them is missing, all are looked at."""

ABSENT = -(1 << 30)
"""Stands for the row of a tensor that has no gradient."""

_exhaust: Callable[[Iterable[Any]], Any] = deque(maxlen=0).extend


def fits_a_pack(param: Any) -> bool:
    """Say whether a parameter is stepped together with others: best with slots side by side."""
    return device_of(param) == "cpu" and param.size <= PACKED_ELEMENTS and param.flags.c_contiguous


def segments(tensors: TensorGroup, is_small: Sequence[bool]) -> Iterator[list[int]]:
    """Yield the small tensors in segments of at most a block's elements."""
    segment: list[int] = []
    size = 0
    for tensor, param in enumerate(tensors.params):
        if not (is_small[tensor] and param.size):
            continue
        if len(segment) == SEGMENT_TENSORS or (segment and size + param.size > twin.BLOCK_ELEMENTS):
            yield segment
            segment, size = [], 0
        segment.append(tensor)
        size += param.size
    if segment:
        yield segment


class Segment:
    """Small tensors that are neighbours, in packs: of those that step alike.

    Attributes:
        packs: two or more tensors each.
        alone: the members that step unlike all others.
    """

    def __init__(self, members: Sequence[int]) -> None:
        self._members = np.array(members, np.intp)
        self._seen: bytes | None = None
        self._columns: dict[int, list[_Column]] = {}
        self.packs: list[Pack] = []
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
                    self.packs.append(Pack(tensors, pack, self._columns_of(pack[0], tensors)))
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


class Pack:
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
        self._dtype = tensors.storage.compute
        ends = np.cumsum([tensors.params[tensor].nbytes for tensor in members]).tolist()
        self._places = [slice(*bounds) for bounds in pairwise([0, *ends])]
        self._size = ends[-1] // self._dtype.itemsize
        joined = [(column, column.joined(members)) for column in columns]
        self._kept = [
            (whole, [] if whole is not None else column.parts(members)) for column, whole in joined
        ]

    def run(self, grads: Sequence[Any], rows: twin.RowValues) -> None:
        """Update the tensors with the scalars of their row."""
        count = len(self._kept)
        memory = twin.scratch(self._tensors.rule.scratch + 3 + count, self._dtype)[-1 - count :]
        grad, *arrays = (array[: self._size] for array in memory)
        np.concatenate([grads[tensor] for tensor in self._members], axis=None, out=grad)
        param, *slots = map(self._gathered, self._kept, arrays)
        twin.update(self._tensors, self._variant, rows[self.row], [param, grad, *slots])
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


def _as_bytes(array: Any) -> Any:
    return memoryview(array.reshape(-1).view(np.uint8))
