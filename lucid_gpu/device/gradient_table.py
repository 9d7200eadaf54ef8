"""Ledger: where the gradient of every Parameter lies, for one vectorised look at thousands.

Reading five thousand gradients one attribute at a time costs the host more than updating their
parameters costs the GPU. A Parameter notes here what it is given, so that a step reads one array.
"""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device.arrays import STRIDED, contiguity, is_cupy

if TYPE_CHECKING:
    import numpy.typing as npt

ABSENT = 0
"""Stands for no gradient; the layouts of arrays are :func:`lucid_gpu.device.contiguity`'s."""

ON_HOST = 8
"""Stands for a NumPy array, of which the identity is noted."""

_lock = threading.Lock()
_free: list[int] = []
# Arrays that grow in place, so that a note needs no lock: it cannot write to one that was replaced.
_addresses = array("Q")
_layouts = array("B")


def enter() -> int:
    """Return a new entry, of a gradient that is absent."""
    with _lock:
        if not _free:
            _grow()
        entry = _free.pop()
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


def read(entries: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Return addresses and layouts of some entries."""
    with _lock:  # an array that NumPy looks at cannot grow
        return (
            np.frombuffer(_addresses, np.uint64)[entries],
            np.frombuffer(_layouts, np.uint8)[entries],
        )


def _grow() -> None:
    size = len(_layouts)
    more = max(64, size)
    _addresses.frombytes(bytes(more * _addresses.itemsize))
    _layouts.frombytes(bytes(more))
    _free.extend(range(size + more - 1, size - 1, -1))
