"""Ledger: where the gradient of every Parameter lies, for one vectorised look at thousands.

Reading five thousand gradients one attribute at a time costs the host more than updating their
parameters costs the GPU. A Parameter notes here what it is given, so that a step reads one array.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device.arrays import STRIDED, contiguity, is_cupy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

ABSENT = 0
"""Stands for no gradient; the layouts of arrays are :func:`lucid_gpu.device.contiguity`'s."""

ON_HOST = 8
"""Stands for a NumPy array, of which the identity is noted."""

_HOST_TYPES = frozenset({np.ndarray, type(None)})

# Without a lock: a signal handler that makes parameters would wait for one that the code below it
# holds, a forked child for one that a thread of its parent held. Arrays that grow in place, so that
# a note cannot be written to one that was replaced: nothing here exports their memory.
_free: list[int] = []
_unused = itertools.count()
_addresses = array("Q")
_layouts = array("B")


def enter() -> int:
    """Return a new entry, of a gradient that is absent."""
    try:
        entry = _free.pop()
    except IndexError:
        entry = next(_unused)
    for table in (_addresses, _layouts):
        while len(table) <= entry:
            table.frombytes(bytes(max(64, len(table)) * table.itemsize))
    _layouts[entry] = ABSENT
    return entry


leave = _free.append
"""Gives an entry back: no function, for at exit a parameter may outlive the globals of one."""


def note(entry: int, grad: Any) -> None:
    """Note a gradient that its parameter is about to hold: where it lies and how it is laid out.

    Of a NumPy array, the identity: asking it for its address takes Python longer than all else.
    """
    if type(grad) is not np.ndarray and is_cupy(grad):
        _addresses[entry] = grad.data.ptr
        _layouts[entry] = contiguity(grad)
    elif isinstance(grad, np.ndarray):
        _addresses[entry] = id(grad)
        _layouts[entry] = ON_HOST
    else:
        _layouts[entry] = ABSENT if grad is None else STRIDED


class Look:
    """Some entries, to be read again and again.

    Args:
        entries: as :func:`enter` returned them.
    """

    def __init__(self, entries: Sequence[int]) -> None:
        numbers = np.array(entries, np.intp)
        first, last = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, -1)
        self._span = slice(first, last + 1)
        numbers -= first
        are_neighbours = np.array_equal(numbers, np.arange(len(numbers)))
        self._numbers = slice(None) if are_neighbours else numbers

    def read(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        """Return addresses and layouts."""
        return (
            np.frombuffer(_addresses[self._span], np.uint64)[self._numbers],
            np.frombuffer(_layouts[self._span], np.uint8)[self._numbers],
        )


def identities(arrays: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """Return what names NumPy arrays to compiled code, as long as they live: 0 stands for None."""
    found = np.fromiter(map(id, arrays), np.uint64, len(arrays))
    found[found == id(None)] = 0
    return found


def of_host(arrays: Sequence[Any]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]] | None:
    """Return what :meth:`Look.read` would of NumPy arrays and None, or None if there are others."""
    if not _HOST_TYPES.issuperset(map(type, arrays)):
        return None
    found = identities(arrays)
    return found, (found != 0).view(np.uint8) * np.uint8(ON_HOST)
