"""The slots of parameters that step: made where they belong, filled with zeros."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import address, device_of
from lucid_gpu.execution import cpu
from lucid_gpu.execution.plan import common_layout

if TYPE_CHECKING:
    from lucid_gpu.optim.core.host_memory import HostMemory
    from lucid_gpu.optim.core.prepared import Item

PAGE_BYTES = 4096

LARGE_BYTES = 1 << 20
"""From here on it pays: an allocator maps such arrays each for itself, at the start of a page."""

Key = tuple[str, str, np.dtype[Any]]
"""Device of the parameter, name of the slot, dtype: slots that are made side by side."""


def provide(items: Sequence[Item], host_memory: HostMemory | None) -> None:
    """Give each slot that is None its zeros.

    Args:
        items: the parameters that step; their slots are changed.
        host_memory: where slots of parameters on a GPU live, and are copied if they do not; None
            for beside their parameters.
    """
    packed: dict[Key, list[Item]] = {}
    hosted: dict[Key, list[Item]] = {}
    for item in items:
        home = device_of(item.data)
        for turn, (slot, array) in enumerate(item.slots.items()):
            key = home, slot, item.data.dtype
            if home != "cpu" and host_memory is not None:
                if not _is_reachable(array):
                    hosted.setdefault(key, []).append(item)
            elif array is None and cpu.fits_a_pack(item.data):
                packed.setdefault(key, []).append(item)
            elif array is None and _is_large(item.data):
                item.slots[slot] = _zeros_apart(item.data, item.data, turn)
            elif array is None:
                item.slots[slot] = _zeros_like(item.data)
    for (_, slot, dtype), own in packed.items():
        _pack(slot, dtype, own)
    if host_memory is not None:
        for (_, slot, _), own in hosted.items():
            _lend(host_memory, slot, own)


def copy_apart(array: Any, data: Any, turn: int) -> Any:
    """Return a copy on the host; of a large array, elsewhere in a page than its parameter.

    Args:
        array: a slot.
        data: what the parameter holds.
        turn: the number of the slot among those of the parameter.
    """
    if not (_is_large(array) and isinstance(data, np.ndarray)):
        return transfer.copy(array, "cpu")
    copied = _zeros_apart(array, data, turn)
    np.copyto(copied, array)
    return copied


def _is_large(array: Any) -> bool:
    is_host = isinstance(array, np.ndarray) and array.nbytes >= LARGE_BYTES
    return is_host and common_layout([array]) != 0


def _zeros_apart(
    array: np.ndarray[Any, Any], data: np.ndarray[Any, Any], turn: int
) -> np.ndarray[Any, Any]:
    """Return zeros like ``array``, elsewhere in a page than ``data`` and other turns.

    Left to themselves, large arrays all begin at the same place of a page. What updates several of
    them in step then loads from one what may be, by the lower bits of its address, what was just
    stored to another, and waits to find out that it is not: compiled code takes up to twice as
    long.
    """
    memory = np.zeros(array.nbytes + PAGE_BYTES, np.uint8)
    apart = PAGE_BYTES // 4 * (1 + turn % 3)
    place = (address(data) + apart) // cpu.ALIGNMENT * cpu.ALIGNMENT
    start = (place - address(memory)) % PAGE_BYTES
    flat: Any = memory[start : start + array.nbytes].view(array.dtype)
    result: np.ndarray[Any, Any] = flat.reshape(array.shape, order=transfer.layout(array))
    return result


def _is_reachable(array: Any) -> bool:
    """Say whether a device can copy from and to an array on its own."""
    return isinstance(array, np.ndarray) and (not array.size or transfer.is_pinned(array))


def _pack(slot: str, dtype: np.dtype[Any], items: Sequence[Item]) -> None:
    ends = np.cumsum([item.data.size for item in items])
    zeros = np.split(np.zeros(ends[-1], dtype), ends[:-1])
    for item, part in zip(items, zeros, strict=True):
        item.slots[slot] = part.reshape(item.data.shape)


def _lend(host_memory: HostMemory, slot: str, items: Sequence[Item]) -> None:
    lent = host_memory.lend([item.data for item in items])
    for item, array in zip(items, lent, strict=True):
        if item.slots[slot] is None:
            array.fill(0)
        else:
            transfer.copy_into(array, item.slots[slot])
        item.slots[slot] = array


def _zeros_like(array: Any) -> Any:
    home = device_of(array)
    with gpu.on(home):
        return gpu.module(home).zeros_like(array)
