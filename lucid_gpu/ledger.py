"""Ledger: where the gradient of every Parameter lies, for one vectorised look at thousands.

Reading five thousand gradients one attribute at a time costs the host more than updating their
parameters costs the GPU. A Parameter notes here what it is given, so that a step reads one array.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu import device

if TYPE_CHECKING:
    import numpy.typing as npt

ABSENT = 0
"""Stands for no gradient; the layouts of arrays are :func:`lucid_gpu.device.contiguity`'s."""

_lock = threading.Lock()
_free: list[int] = []
_addresses: npt.NDArray[np.uint64] = np.zeros(0, np.uint64)
_layouts: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)


def enter() -> int:
    """Return a new entry, of a gradient that is absent."""
    with _lock:
        if not _free:
            _grow()
        entry = _free.pop()
        _layouts[entry] = ABSENT
    return entry


def leave(entry: int) -> None:
    """Give an entry back."""
    _free.append(entry)


def note(entry: int, grad: Any) -> None:
    """Note where a gradient lies and how it is laid out; addresses of device arrays only."""
    address, kind = 0, ABSENT
    if grad is not None:
        is_on_gpu = device.is_cupy(grad)
        address = grad.data.ptr if is_on_gpu else 0
        kind = device.contiguity(grad) if is_on_gpu else device.STRIDED
    with _lock:  # the tables may be growing in another thread
        _addresses[entry] = address
        _layouts[entry] = kind


def read(entries: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
    """Return addresses and layouts of some entries."""
    return _addresses[entries], _layouts[entries]


def _grow() -> None:
    global _addresses, _layouts  # noqa: PLW0603 - the tables of the process
    size = len(_layouts)
    more = max(64, size)
    _addresses = np.concatenate([_addresses, np.zeros(more, np.uint64)])
    _layouts = np.concatenate([_layouts, np.zeros(more, np.uint8)])
    _free.extend(range(size + more - 1, size - 1, -1))
