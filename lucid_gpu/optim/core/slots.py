"""The slots of parameters that step: made where they belong, filled with what they begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import address, as_array, device_of, zeros
from lucid_gpu.execution import formats, packs, twin
from lucid_gpu.execution.plan import common_layout

if TYPE_CHECKING:
    from lucid_gpu.optim.core.host_memory import HostMemory
    from lucid_gpu.optim.core.tensors import Tensor

PAGE_BYTES = 4096

LARGE_BYTES = 1 << 20
"""From here on it pays: an allocator maps such arrays each for itself, at the start of a page."""

VECTOR_BYTES = 16
"""What the kernel loads at a time."""

Key = tuple[str, str, np.dtype[Any]]
"""Device of the parameter, name of the slot, dtype: slots that are made side by side."""


def provide(
    tensors: Sequence[Tensor],
    fills: Sequence[Mapping[str, Any]],
    host_memory: HostMemory | None,
    make_zeros: Callable[[str, Any, np.dtype[Any]], Any] = zeros,
) -> None:
    """Make each slot that is None, with what it begins with.

    Args:
        tensors: the parameters that step; their slots are changed.
        fills: for each parameter group, what slots begin with where that is not 0: a number, or
            ``"param"`` for a copy of the parameter.
        host_memory: where slots of parameters on a GPU live, and are copied if they do not; None
            for beside their parameters.
        make_zeros: makes memory as :func:`lucid_gpu.device.arrays.zeros` does.
    """
    packed: dict[Key, list[Tensor]] = {}
    hosted: dict[Key, list[Tensor]] = {}
    lacking = [
        (tensor, slot, fill)
        for tensor in tensors
        for slot, array in (tensor.slots or {}).items()
        if array is None and (fill := fills[tensor.group].get(slot, 0)) != 0
    ]
    for tensor in tensors:
        slots = tensor.slots or {}
        home = device_of(tensor.data)
        for turn, (slot, array) in enumerate(slots.items()):
            dtype = tensor.used.get(slot, tensor.data.dtype)
            key = home, slot, dtype
            if home != "cpu" and host_memory is not None:
                if not _is_reachable(array):
                    hosted.setdefault(key, []).append(tensor)
            elif array is None and _fits_a_pack(tensor.data):
                packed.setdefault(key, []).append(tensor)
            elif array is None and _is_large(tensor.data):
                slots[slot] = _zeros_apart(tensor.data, tensor.data, turn, dtype, make_zeros)
            elif array is None:
                slots[slot] = _zeros_like(tensor.data, dtype, make_zeros)
    for (home, slot, dtype), own in packed.items():
        _pack(home, slot, dtype, own, make_zeros)
    if host_memory is not None:
        for (_, slot, dtype), own in hosted.items():
            _lend(host_memory, slot, dtype, own)
    for tensor, slot, fill in lacking:
        fill_slot((tensor.slots or {})[slot], tensor.data if fill == "param" else fill)


def copy_apart(array: Any, data: Any, turn: int) -> Any:
    """Return a copy on the host; of a large array, elsewhere in a page than its parameter.

    Args:
        array: a slot.
        data: what the parameter holds.
        turn: the number of the slot among those of the parameter.
    """
    if not (_is_large(array) and isinstance(data, np.ndarray)):
        return transfer.copy(array, "cpu")
    copied = _zeros_apart(array, data, turn, array.dtype, zeros)
    np.copyto(copied, array)
    return copied


def copy_beside(array: Any, param: Any) -> Any:
    """Return a copy of an array on the device of a parameter."""
    return transfer.copy(as_array(array), device_of(as_array(param.data)))


def _is_large(array: Any) -> bool:
    is_host = isinstance(array, np.ndarray) and array.nbytes >= LARGE_BYTES
    return is_host and common_layout([array]) != 0


def _zeros_apart(
    array: np.ndarray[Any, Any],
    data: np.ndarray[Any, Any],
    turn: int,
    dtype: np.dtype[Any],
    make_zeros: Any,
) -> np.ndarray[Any, Any]:
    """Return zeros like ``array``, elsewhere in a page than ``data`` and other turns.

    Left to themselves, large arrays all begin at the same place of a page. What updates several of
    them in step then loads from one what may be, by the lower bits of its address, what was just
    stored to another, and waits to find out that it is not: compiled code takes up to twice as
    long.
    """
    nbytes = array.size * dtype.itemsize
    memory = make_zeros("cpu", nbytes + PAGE_BYTES, np.dtype(np.uint8))
    apart = PAGE_BYTES // 4 * (1 + turn % 3)
    place = (address(data) + apart) // twin.ALIGNMENT * twin.ALIGNMENT
    start = (place - address(memory)) % PAGE_BYTES
    flat: Any = memory[start : start + nbytes].view(dtype)
    result: np.ndarray[Any, Any] = flat.reshape(array.shape, order=transfer.layout(array))
    return result


def _is_reachable(array: Any) -> bool:
    """Say whether a device can copy from and to an array on its own."""
    return isinstance(array, np.ndarray) and (not array.size or transfer.is_pinned(array))


def _fits_a_pack(data: Any) -> bool:
    """Say whether the slots of a parameter are best made side by side with those of others.

    On a CPU, small tensors are stepped together. On a GPU, each array would be an allocation.
    """
    return bool(data.size <= packs.PACKED_ELEMENTS and data.flags.c_contiguous)


def _pack(
    home: str, slot: str, dtype: np.dtype[Any], tensors: Sequence[Tensor], make_zeros: Any
) -> None:
    # On a GPU, every array begins where a vector may be loaded.
    step = 1 if home == "cpu" else VECTOR_BYTES // dtype.itemsize
    ends = np.cumsum([-(-tensor.data.size // step) * step for tensor in tensors]).tolist()
    memory = make_zeros(home, ends[-1], dtype)
    for tensor, start in zip(tensors, [0, *ends], strict=False):
        part = memory[start : start + tensor.data.size].reshape(tensor.data.shape)
        if tensor.slots is not None:
            tensor.slots[slot] = part


def _lend(
    host_memory: HostMemory, slot: str, dtype: np.dtype[Any], tensors: Sequence[Tensor]
) -> None:
    lent = host_memory.lend([tensor.data for tensor in tensors], dtype)
    for tensor, array in zip(tensors, lent, strict=True):
        slots = tensor.slots if tensor.slots is not None else {}
        if slots[slot] is None:
            array.fill(0)
        else:
            transfer.copy_into(array, slots[slot])
        slots[slot] = array


def fill_slot(slot: Any, value: Any) -> None:
    """Fill a slot with a number, or with the values of an array."""
    if isinstance(value, int | float):
        with gpu.on(device_of(slot)):
            slot.fill(value)
    else:
        transfer.copy_into(slot, cast(value, slot.dtype))


def _zeros_like(array: Any, dtype: np.dtype[Any], make_zeros: Any) -> Any:
    """Return zeros of the shape of an array, its axes in the order of theirs in memory."""
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    shape = tuple(array.shape[axis] for axis in axes)
    made = make_zeros(device_of(array), shape, dtype)
    return made if axes == sorted(axes) else made.transpose(np.argsort(axes).tolist())


def cast(array: Any, dtype: np.dtype[Any]) -> Any:
    """Return an array in another dtype, rounded to the nearest; itself if it has that one."""
    if array.dtype == dtype:
        return array
    with gpu.on(device_of(array)):
        values = formats.widen(array) if array.dtype in formats.HALVES else array
        return formats.nearest(values, dtype) if dtype in formats.HALVES else values.astype(dtype)


def copy_as(array: Any, dtype: np.dtype[Any]) -> Any:
    """Return a copy of an array where it is, in a dtype."""
    made = cast(array, dtype)
    return transfer.copy(array, device_of(array)) if made is array else made


def is_stale(master: Any, data: Any) -> bool:
    """Say whether a master is not the exact value of its parameter; waits for the device."""
    present = transfer.to(data, device_of(master))
    with gpu.on(device_of(master)):
        rounded = cast(master, data.dtype)
        return bool((rounded.view(np.uint16) != present.view(np.uint16)).any())
