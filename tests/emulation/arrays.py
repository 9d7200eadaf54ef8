"""Emulated device arrays, and the pinned memory that copies to and from them pass through."""

from __future__ import annotations

import ctypes
import functools
import types
import weakref
from collections import defaultdict, deque

import numpy as np

from tests.emulation.machine import MACHINE, Device, get_current_stream


class MemoryPointer:
    """An address in emulated device memory."""

    def __init__(self, owner: ndarray, ptr: int) -> None:
        self.ptr = ptr
        self.device_id = owner.device.id
        self._owner = owner
        self._end = owner.ctypes.data + owner.nbytes

    def __int__(self) -> int:
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self._owner, self.ptr + offset)

    def copy_from_host_async(self, mem: int, size: int, stream=None) -> None:
        self._check(mem, size)
        MACHINE.record.uploads.append(size)
        self._submit(stream, ctypes.memmove, self.ptr, mem, size)

    def copy_to_host_async(self, mem: int, size: int, stream=None) -> None:
        self._check(mem, size)
        MACHINE.record.downloads.append(size)
        self._submit(stream, ctypes.memmove, mem, self.ptr, size)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream=None) -> None:
        if max(self.ptr + size - self._end, src.ptr + size - src._end) > 0:
            raise ValueError(f"a copy of {size} bytes runs past the end of a device array")
        self._submit(stream, ctypes.memmove, self.ptr, src.ptr, size)

    def memset_async(self, value: int, size: int, stream=None) -> None:
        self._submit(stream, ctypes.memset, self.ptr, value, size)

    def _submit(self, stream, *work) -> None:
        stream = stream or get_current_stream()
        kept = self._owner if stream is self._owner._stream else None  # as in `pointed_at`
        stream.submit(functools.partial(_run, kept, *work))

    def _check(self, mem: int, size: int) -> None:
        if not PINNED.holds(mem, size):
            raise ValueError(f"{size} bytes at host address {mem:#x} are not pinned")
        if self.ptr + size > self._end:
            raise ValueError(f"a copy of {size} bytes runs past the end of the device array")


def _run(kept: ndarray | None, function, *arguments) -> None:
    """Do queued work; its arguments are addresses, and in one array ``kept`` until now."""
    function(*arguments)


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """An array in the memory of an emulated device, as strict with the host's as CuPy's."""

    def __array_finalize__(self, parent: object) -> None:
        is_view = isinstance(parent, ndarray)
        self._device_id = parent._device_id if is_view else MACHINE.device
        self._stream = parent._stream if is_view else get_current_stream()

    @property
    def device(self) -> Device:
        return Device(self._device_id)

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(self, self.ctypes.data)

    def get(self, stream=None, order: str = "C", out: np.ndarray | None = None) -> np.ndarray:
        (stream or get_current_stream()).synchronize()
        host = np.array(on_host(self), order=order)
        if out is None:
            return host
        out[...] = host
        return out

    def set(self, host: np.ndarray) -> None:
        on_host(self)[...] = host

    def copy(self, order: str = "C") -> ndarray:
        return new(on_host(self).copy(order))

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        check_operands(*inputs, *options.get("out", ()))
        result = getattr(ufunc, method)(*on_host(inputs), **on_host(options))
        if "out" in options:
            return options["out"][0] if len(options["out"]) == 1 else options["out"]
        return from_host(result)

    def __getitem__(self, key):
        result = super().__getitem__(key)
        return from_host(result) if isinstance(result, np.generic) else result

    def __setitem__(self, key, value) -> None:
        if isinstance(value, np.ndarray) and not isinstance(value, ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        check_operands(self, value if isinstance(value, ndarray) else 0)
        super().__setitem__(key, on_host(value))

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device_id


def new(host: np.ndarray) -> ndarray:
    """Return memory of the host as a newly allocated array of the current device."""
    MACHINE.note_allocation()
    _ALLOCATED[host.ctypes.data] = host
    _MADE_ON[host.ctypes.data] = get_current_stream()
    array = host.view(ndarray)
    array._device_id = MACHINE.device
    return array


_ALLOCATED: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
_MADE_ON: dict[int, object] = {}


def pointed_at(words: np.ndarray, stream) -> list[np.ndarray]:
    """Return what was allocated on ``stream`` and has one of ``words`` as an address.

    CuPy's pool gives memory that was let go of to later work of the stream it was made on: there,
    what is under way may still use it. Nothing keeps it for other streams.
    """
    return [
        host
        for start, host in list(_ALLOCATED.items())
        if _MADE_ON[start] is stream and ((words >= start) & (words < start + host.nbytes)).any()
    ]


def from_host(value):
    """Return what a NumPy function returned as CuPy would: scalars are arrays of no dimension."""
    if isinstance(value, tuple | list):
        return type(value)(map(from_host, value))
    if isinstance(value, np.generic):
        value = np.asarray(value)
    return new(value) if isinstance(value, np.ndarray) else value


def on_host(value):
    """Return a value with its emulated arrays as NumPy's, sharing memory."""
    if isinstance(value, ndarray):
        return value.view(np.ndarray)
    if isinstance(value, tuple | list):
        return type(value)(map(on_host, value))
    if isinstance(value, dict):
        return {key: on_host(item) for key, item in value.items()}
    return value


def check_operands(*values: object) -> None:
    """Raise as CuPy does if something is in the memory of the host or of another device."""
    for value in values:
        if isinstance(value, tuple | list):
            check_operands(*value)
        elif isinstance(value, ndarray):
            if value._device_id != MACHINE.device:
                raise ValueError(
                    f"The device where the array resides ({value._device_id}) is different from "
                    f"the current device ({MACHINE.device}). Peer access is unavailable"
                )
        elif isinstance(value, np.ndarray):
            raise TypeError(f"Unsupported type {type(value)}")


def array(obj, dtype=None, copy: bool | None = True, order: str = "K") -> ndarray:
    """``cupy.array``: ``copy=False`` forbids a copy, None avoids it."""
    if not isinstance(obj, ndarray):
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
        order = "C" if order == "K" and not isinstance(obj, np.ndarray) else order
        return _filled(np.array(obj, dtype, order=order))
    if copy is not True and obj._device_id == MACHINE.device:
        same = np.array(on_host(obj), dtype, order=order, copy=None)
        if np.shares_memory(same, obj) or not obj.size:
            return obj
        if copy is False:
            raise ValueError("Unable to avoid copy while creating an array as requested.")
    return _filled(on_host(obj), dtype, order)


def _filled(source: np.ndarray, dtype=None, order: str = "K") -> ndarray:
    """Return a new array and queue the copy of ``source`` into it."""
    target = new(np.empty_like(source, dtype, order, subok=False))
    get_current_stream().submit(lambda: np.copyto(on_host(target), source))
    return target


def empty(shape, dtype=float, order: str = "C") -> ndarray:
    """``cupy.empty``, filled with what no computation survives unnoticed."""
    host = np.empty(shape, dtype, order)
    host.reshape(-1, order="A").view(np.uint8)[...] = 0xFF
    return new(host)


class PinnedPool:
    """Page-locked memory that is handed out again as soon as nothing refers to it.

    What came back first goes out first: most likely, the device has yet to read it.
    """

    def __init__(self) -> None:
        self._blocks: dict[int, bytearray] = {}
        self._free: dict[int, deque[bytearray]] = defaultdict(deque)

    def empty(self, shape, dtype=float, order: str = "C") -> np.ndarray:
        count = int(np.prod(shape))
        size = -(-max(count * np.dtype(dtype).itemsize, 1) // 512) * 512
        return np.frombuffer(self.lend(size), dtype, count).reshape(shape, order=order)

    def lend(self, size: int) -> ctypes.Array:
        MACHINE.note_allocation()
        block = self._free[size].popleft() if self._free[size] else bytearray(size)
        lease = (ctypes.c_ubyte * size).from_buffer(block)
        self._blocks[ctypes.addressof(lease)] = block
        weakref.finalize(lease, self._free[size].append, block)
        return lease

    def holds(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= start + len(block)
            for start, block in self._blocks.items()
        )


PINNED = PinnedPool()


def pinned_memory(nbytes: int, flags: int = 0) -> ctypes.Array:
    """``cupy.cuda.PinnedMemory``: past the pool."""
    return PINNED.lend(nbytes)


def pinned_memory_pointer(memory: ctypes.Array, offset: int) -> memoryview:
    """``cupy.cuda.PinnedMemoryPointer``, of which only the buffer is used."""
    return memoryview(memory).cast("B")[offset:]


def pointer_attributes(address: int) -> types.SimpleNamespace:
    """``cupy.cuda.runtime.pointerGetAttributes``: 0 is what CUDA knows nothing of."""
    return types.SimpleNamespace(type=HOST if PINNED.holds(address, 1) else 0)


HOST = 1
