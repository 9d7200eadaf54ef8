"""Copies of arrays within and between devices.

What goes between host and device passes through pinned memory in pieces, so that the host fills
or empties one while the device copies the other, and no more than two are ever pinned.
"""

from __future__ import annotations

import contextlib
import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import device_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lucid_gpu.device.arrays import Array

STAGING_BYTES = 32 << 20
"""Size of each of the two pinned buffers through which device memory reaches the host."""


def layout(array: Array) -> str:
    """Return ``"F"`` for an array that is contiguous in Fortran order only, else ``"C"``."""
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an uninitialized NumPy array in page-locked host memory.

    Raises:
        MemoryError: the system has no such memory.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    empty = functools.partial(gpu.cupyx().empty_pinned, shape, dtype)
    return _pinned(nbytes, empty)  # type: ignore[no-any-return]


def pinned_block(nbytes: int) -> np.ndarray[Any, Any]:
    """Return uninitialized page-locked bytes, as many as asked for.

    For what is large and stays: CuPy's pool, where :func:`pinned` takes its memory, rounds sizes up
    to powers of two.

    Raises:
        MemoryError: the system has no such memory.
    """
    cp = gpu.cupy()
    allocate = functools.partial(cp.cuda.PinnedMemory, nbytes, cp.cuda.runtime.hostAllocPortable)
    memory = _pinned(nbytes, allocate)
    return np.ndarray((nbytes,), np.uint8, cp.cuda.PinnedMemoryPointer(memory, 0))


def _pinned(nbytes: int, allocate: Callable[[], Any]) -> Any:
    """Return what ``allocate`` does, if need be after CuPy's pool has given back what it spares."""
    cp = gpu.cupy()
    try:
        return allocate()
    except cp.cuda.runtime.CUDARuntimeError:
        cp.get_default_pinned_memory_pool().free_all_blocks()
    try:
        return allocate()
    except cp.cuda.runtime.CUDARuntimeError as error:
        size = f"{nbytes / 2**30:.1f} GiB" if nbytes >= 1 << 30 else f"{nbytes:,} bytes"
        raise MemoryError(
            f"{size} of page-locked host memory cannot be had ({error}): "
            "free host memory, or raise the limits of this process or container"
        ) from error


def is_pinned(array: np.ndarray[Any, Any]) -> bool:
    """Say whether a host array lies in page-locked memory, which devices reach on their own."""
    runtime = gpu.cupy().cuda.runtime
    return bool(runtime.pointerGetAttributes(array.ctypes.data).type == runtime.memoryTypeHost)


def copy(array: Array, device: str) -> Array:
    """Return a copy of ``array`` on ``device``, in Fortran order if it is Fortran-ordered, else C.

    A copy between host and device passes through pinned memory on the current stream of the
    device and is complete on return; a copy within a device is ordered by that stream.
    """
    source, order = device_of(array), layout(array)
    if source == "cpu" == device:
        return np.array(array, order=order, copy=True)  # type: ignore[call-overload]
    if source != "cpu" != device:
        return _copy_between_devices(array, device, order)
    if device == "cpu":
        host = np.empty(array.shape, array.dtype, order=order)  # type: ignore[call-overload]
        _download(*((array.T, host.T) if order == "F" else (array, host)))
        return host
    with gpu.on(device):
        target = gpu.cupy().empty(array.shape, array.dtype, order=order)
        _upload(np.asarray(array, order=order), target)  # type: ignore[call-overload]
    return target


def to(array: Array, device: str) -> Array:
    """Return ``array`` itself if it is on ``device``, else a copy there."""
    return array if device_of(array) == device else copy(array, device)


def _copy_between_devices(array: Array, device: str, order: str) -> Array:
    """Copy from GPU to GPU, or within one; the current stream of each waits for the other's."""
    source = device_of(array)
    if source == device:
        with gpu.on(device):
            return gpu.cupy().array(array, order=order, copy=True)
    with gpu.on(source):
        array = gpu.cupy().array(array, order=order, copy=None)
        ready = gpu.cupy().cuda.get_current_stream().record()
    with gpu.on(device):
        stream = gpu.cupy().cuda.get_current_stream()
        stream.wait_event(ready)
        copied = gpu.cupy().array(array, order=order, copy=True)
        arrived = stream.record()
    with gpu.on(source):
        gpu.cupy().cuda.get_current_stream().wait_event(arrived)
    return copied


def _download(array: Array, host: np.ndarray[Any, Any]) -> None:
    """Copy device memory, contiguous in C order, to host memory that is so too."""
    memory = host.reshape(-1).view(np.uint8)
    start = 0
    for chunk in host_chunks(array):
        memory[start : start + len(chunk)] = chunk
        start += len(chunk)


def _upload(host: np.ndarray[Any, Any], array: Array) -> None:
    """Copy contiguous host memory to the device: the host fills one buffer ahead."""
    memory = host.reshape(-1, order="A").view(np.uint8)
    with _staging(array.nbytes) as (stream, buffers, bounds):
        sent: list[Any] = []
        for turn, (start, stop) in enumerate(bounds):
            buffer = buffers[turn % 2]
            if turn > 1:
                sent[turn - 2].synchronize()
            buffer[: stop - start] = memory[start:stop]
            (array.data + start).copy_from_host_async(buffer.ctypes.data, stop - start, stream)
            sent.append(stream.record())


@contextlib.contextmanager
def _staging(nbytes: int) -> Iterator[tuple[Any, list[Any], list[tuple[int, int]]]]:
    """Yield the current stream, two pinned buffers, and the byte ranges that take turns in them.

    The buffers return to CuPy's pinned pool, which hands them out again at once: even after an
    interrupt, they are not let go before the stream is done with them.
    """
    device = gpu.cupy().cuda.Device()
    stream = gpu.cupy().cuda.get_current_stream()
    size = min(nbytes, STAGING_BYTES)
    bounds = [(start, min(start + size, nbytes)) for start in range(0, nbytes, max(size, 1))]
    buffers = [pinned((size,), np.uint8) for _ in range(min(2, len(bounds)))]
    try:
        yield stream, buffers, bounds
    finally:
        with device:  # a default stream is that of the current device
            stream.synchronize()


def host_chunks(array: Array) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the bytes of a device array in C order, as pieces of pinned memory.

    Each piece is valid until the next one is asked for; the device fills one piece ahead.
    """
    device = device_of(array)
    arrived: list[Any] = []
    with contextlib.ExitStack() as stack:
        with gpu.on(device):
            source = gpu.cupy().array(array, order="C", copy=None)
            stream, buffers, bounds = stack.enter_context(_staging(source.nbytes))

        def fetch(turn: int) -> None:
            start, stop = bounds[turn]
            with gpu.on(device):
                host = buffers[turn % 2].ctypes.data
                (source.data + start).copy_to_host_async(host, stop - start, stream)
                arrived.append(stream.record())

        for turn, (start, stop) in enumerate(bounds):
            for ahead in range(len(arrived), min(turn + 2, len(bounds))):
                fetch(ahead)
            arrived[turn].synchronize()
            yield buffers[turn % 2][: stop - start]


def copy_into(target: Array, source: Array) -> None:
    """Overwrite ``target`` with ``source``, of the same shape and dtype, wherever each lives."""
    device = device_of(target)
    if device == "cpu":
        np.copyto(target, to(source, "cpu"))
        return
    with gpu.on(device):
        if device_of(source) == "cpu" and target.flags.c_contiguous:
            _upload(np.asarray(source, order="C"), target)
        else:
            target[...] = to(source, device)
