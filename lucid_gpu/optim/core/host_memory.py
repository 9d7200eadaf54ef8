"""HostMemory: pinned memory for slots that stay on the host while their parameters are on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lucid_gpu.device import transfer


class HostMemory:
    """Lends pinned memory to slots, and keeps for the next time what nobody uses any more.

    Arrays that are lent together lie side by side in one block, so that one copy moves many. The
    block comes back with the last of them, a copy under way or a user's view included.
    """

    def __init__(self) -> None:
        self._spare: list[np.ndarray[Any, Any]] = []

    def lend(self, arrays: Sequence[Any], dtype: np.dtype[Any] | None = None) -> list[Any]:
        """Return uninitialized host arrays of the shapes and layouts of the given ones.

        Args:
            arrays: the given ones.
            dtype: of those returned; None for that of each.
        """
        dtypes = [dtype or array.dtype for array in arrays]
        sizes = [own.itemsize * array.size for array, own in zip(arrays, dtypes, strict=True)]
        ends = np.cumsum([0, *sizes]).tolist()
        lease = self._lease(max(ends[-1], 1))
        places = [lease[start:stop] for start, stop in pairwise(ends)]
        lent: list[Any] = [place.view(own) for place, own in zip(places, dtypes, strict=True)]
        return [
            place.reshape(array.shape, order=transfer.layout(array))
            for array, place in zip(arrays, lent, strict=True)
        ]

    def trim(self) -> None:
        """Give memory that is not lent back to the system."""
        self._spare.clear()

    def _lease(self, nbytes: int) -> np.ndarray[Any, Any]:
        fitting = (i for i, block in enumerate(self._spare) if block.nbytes == nbytes)
        position = next(fitting, None)
        block = transfer.pinned_block(nbytes) if position is None else self._spare.pop(position)
        lease = np.frombuffer(block.data, np.uint8)  # the base of all views of it
        weakref.finalize(lease, self._spare.append, block).atexit = False
        return lease
