"""HostMemory: pinned memory for slots that stay on the host while their parameters are on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lucid_gpu import transfer

Block = np.ndarray[Any, Any]


class HostMemory:
    """Lends pinned memory to slots, and keeps for the next time what it gets back.

    Arrays that are lent together lie side by side in one block, so that one copy moves many.
    """

    def __init__(self) -> None:
        self._spare: list[Block] = []
        self._own: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()

    def lend(self, arrays: Sequence[Any]) -> list[Any]:
        """Return uninitialized host arrays of the shapes, dtypes and layouts of the given ones."""
        ends = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()
        block = self._block(max(ends[-1], 1))
        places = [block[start:stop] for start, stop in pairwise(ends)]
        return [
            place.view(array.dtype).reshape(array.shape, order=transfer.layout(array))
            for array, place in zip(arrays, places, strict=True)
        ]

    def take_back(self, arrays: Sequence[Any]) -> None:
        """Take back the blocks in which some arrays lie, if they were lent here."""
        keys = dict.fromkeys(id(array.base) for array in arrays)
        self._spare += [self._own[key] for key in keys if key in self._own]

    def _block(self, nbytes: int) -> Block:
        for position, block in enumerate(self._spare):
            if block.nbytes == nbytes:
                return self._spare.pop(position)
        block = transfer.pinned_block(nbytes)
        self._own[id(block)] = block
        return block
