"""Where arrays live: device names, array modules, and copies between host and device.

The only module that imports CuPy, on first need, so that importing the package is quick and
works without it. Devices are named ``"cpu"`` and ``"cuda:0"``, ``"cuda:1"``, …
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or a ``cupy.ndarray``; CuPy publishes no types to name here."""

STAGING_BYTES = 32 << 20
"""Size of each of the two pinned buffers through which device memory reaches the host."""

INSTALL = (
    "pip install 'lucid-gpu[cuda13]' (NVIDIA driver 580 or newer) or "
    "pip install 'lucid-gpu[cuda12]' (driver 525 or newer)"
)
"""What to do where CuPy or a part of it is missing."""


class DeviceUnavailableError(RuntimeError):
    """A GPU was asked for, and CuPy, the NVIDIA driver or that device is missing."""


@functools.cache
def _probe() -> tuple[Any, int, str]:
    """CuPy, the number of usable devices, and why there is none (empty if there is one)."""
    try:
        import cupy
    except ImportError as error:
        return None, 0, f"CuPy cannot be imported ({error}): {INSTALL}"
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return (
            cupy,
            0,
            (
                f"CuPy {cupy.__version__} is installed, but no usable NVIDIA driver was found "
                f"({error}): install the driver of your GPU, or a CuPy that it can run: {INSTALL}"
            ),
        )
    if count == 0:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = f"; CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else ""
        return cupy, 0, f"the NVIDIA driver is installed but shows no GPU{hint}"
    return cupy, count, ""


def why_unavailable() -> str:
    """Say in plain words why no GPU can be used; empty when one can."""
    return _probe()[2]


def count() -> int:
    """Return the number of usable GPUs."""
    return _probe()[1]


def cupy() -> Any:
    """Return the CuPy module.

    Raises:
        DeviceUnavailableError: CuPy or the driver is missing; the text says which, and the remedy.
    """
    module, devices, reason = _probe()
    if not devices:
        raise DeviceUnavailableError(f"no GPU can be used: {reason}")
    return module


def installed_cupy() -> Any | None:
    """Return the CuPy module even where it finds no GPU; None where it cannot be imported."""
    return _probe()[0]


def default() -> str:
    """Return CuPy's current device where a GPU is usable, else ``"cpu"``."""
    return f"cuda:{cupy().cuda.runtime.getDevice()}" if count() else "cpu"


def resolve(device: str) -> str:
    """Return the canonical name of a device that can be used.

    Args:
        device: ``"cpu"``, ``"cuda"`` (the current GPU) or ``"cuda:N"``.

    Raises:
        TypeError: ``device`` is not a string.
        ValueError: ``device`` is none of these names.
        DeviceUnavailableError: a GPU is named that cannot be used.

    Example:
        >>> resolve("cpu")
        'cpu'
    """
    if not isinstance(device, str):
        raise TypeError(f"device must be a string such as 'cpu' or 'cuda:0', not {device!r}")
    if device == "cpu":
        return device
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if match is None:
        raise ValueError(f"device={device!r} is unknown: use 'cpu', 'cuda' or 'cuda:N'")
    if not count():
        raise DeviceUnavailableError(f"device={device!r} cannot be used: {why_unavailable()}")
    if match[1] is None:
        return default()
    if int(match[1]) >= count():
        raise DeviceUnavailableError(
            f"device={device!r} does not exist: this machine has {count()} GPU(s), numbered from 0"
        )
    return f"cuda:{int(match[1])}"


def is_cupy(value: object) -> bool:
    """Say whether ``value`` is a CuPy array, without importing CuPy."""
    module = sys.modules.get("cupy")
    return module is not None and isinstance(value, module.ndarray)


def is_array(value: object) -> bool:
    """Say whether ``value`` is a NumPy or CuPy array."""
    return isinstance(value, np.ndarray) or is_cupy(value)


def of(array: Array) -> str:
    """Return the name of the device that holds ``array``."""
    return f"cuda:{array.device.id}" if is_cupy(array) else "cpu"


def module(device: str) -> Any:
    """Return the array module of a device: ``numpy`` or ``cupy``."""
    return np if device == "cpu" else cupy()


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` CuPy's current device inside a ``with`` block (nothing to do for the CPU)."""
    if device == "cpu":
        return contextlib.nullcontext()
    return cupy().cuda.Device(int(device.removeprefix("cuda:")))  # type: ignore[no-any-return]


def is_capturing() -> bool:
    """Say whether CuPy's current stream records a CUDA graph."""
    module = sys.modules.get("cupy")
    if module is None or not count():
        return False
    return bool(module.cuda.get_current_stream().is_capturing())


def address(array: Array) -> int:
    """Return the address of the first element, in the memory of the array's device."""
    return int(array.data.ptr) if is_cupy(array) else int(array.ctypes.data)


def are_alike(array: Any, other: Array) -> bool:
    """Say whether two arrays have the same type, shape, dtype and device."""
    return (
        type(array) is type(other)
        and array.shape == other.shape
        and array.dtype == other.dtype
        and (type(array) is np.ndarray or of(array) == of(other))
    )


def as_array(value: Any) -> Array | None:
    """Return ``value`` as a NumPy or CuPy array that shares its memory, or None if it is no array.

    Arrays of other frameworks come in through DLPack, without a copy.
    """
    if is_array(value):
        return value
    if isinstance(value, np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        on_host = value.__dlpack_device__()[0] == 1
        return (np if on_host else cupy()).from_dlpack(value)
    return None


STRIDED, C_ORDER, F_ORDER = 1, 2, 4


def contiguity(array: Array) -> int:
    """Return STRIDED, plus C_ORDER and F_ORDER for the orders in which it is contiguous."""
    flags = array.flags
    return STRIDED + C_ORDER * bool(flags.c_contiguous) + F_ORDER * bool(flags.f_contiguous)


def layout(array: Array) -> str:
    """Return ``"F"`` for an array that is contiguous in Fortran order only, else ``"C"``."""
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def pinned(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an uninitialized NumPy array in page-locked host memory."""
    cupy()
    import cupyx

    return cupyx.empty_pinned(shape, dtype)  # type: ignore[no-any-return]


def copy(array: Array, device: str) -> Array:
    """Return a copy of ``array`` on ``device``, in Fortran order if it is Fortran-ordered, else C.

    A copy between host and device passes through pinned memory on the current stream of the
    device and is complete on return; a copy within a device is ordered by that stream.
    """
    source, order = of(array), layout(array)
    if source == "cpu" == device:
        return np.array(array, order=order, copy=True)  # type: ignore[call-overload]
    if source != "cpu" != device:
        return _copy_between_devices(array, device, order)
    if device == "cpu":
        host = np.empty(array.shape, array.dtype, order=order)  # type: ignore[call-overload]
        with on(source):
            _download(cupy().array(array, order=order, copy=None), host)
        return host
    with on(device):
        target = cupy().empty(array.shape, array.dtype, order=order)
        _upload(np.asarray(array, order=order), target)  # type: ignore[call-overload]
    return target


def to(array: Array, device: str) -> Array:
    """Return ``array`` itself if it is on ``device``, else a copy there."""
    return array if of(array) == device else copy(array, device)


def _copy_between_devices(array: Array, device: str, order: str) -> Array:
    """Copy from GPU to GPU, or within one; the current stream of each waits for the other's."""
    source = of(array)
    if source == device:
        with on(device):
            return cupy().array(array, order=order, copy=True)
    with on(source):
        array = cupy().array(array, order=order, copy=None)
        ready = cupy().cuda.get_current_stream().record()
    with on(device):
        stream = cupy().cuda.get_current_stream()
        stream.wait_event(ready)
        copied = cupy().array(array, order=order, copy=True)
        arrived = stream.record()
    with on(source):
        cupy().cuda.get_current_stream().wait_event(arrived)
    return copied


def _download(array: Array, host: np.ndarray[Any, Any]) -> None:
    """Copy contiguous device memory to the host: the device fills one buffer ahead."""
    memory = host.reshape(-1, order="A").view(np.uint8)
    with _staging(array.nbytes) as (stream, buffers, bounds):
        arrived: list[Any] = []
        for turn in range(len(bounds) + 1):
            if turn < len(bounds):
                start, stop = bounds[turn]
                buffer = buffers[turn % 2]
                source = array.data + start
                source.copy_to_host_async(buffer.ctypes.data, stop - start, stream)
                arrived.append(stream.record())
            if turn > 0:
                start, stop = bounds[turn - 1]
                arrived[turn - 1].synchronize()
                memory[start:stop] = buffers[(turn - 1) % 2][: stop - start]


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
    stream = cupy().cuda.get_current_stream()
    size = min(nbytes, STAGING_BYTES)
    bounds = [(start, min(start + size, nbytes)) for start in range(0, nbytes, max(size, 1))]
    buffers = [pinned((size,), np.uint8) for _ in range(min(2, len(bounds)))]
    try:
        yield stream, buffers, bounds
    finally:
        stream.synchronize()


def host_chunks(array: Array) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the bytes of a device array in C order, as pieces of pinned memory.

    Each piece is valid until the next one is asked for; the device fills one piece ahead.
    """
    device = of(array)
    arrived: list[Any] = []
    with contextlib.ExitStack() as stack:
        with on(device):
            source = cupy().array(array, order="C", copy=None)
            stream, buffers, bounds = stack.enter_context(_staging(source.nbytes))

        def fetch(turn: int) -> None:
            start, stop = bounds[turn]
            with on(device):
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
    device = of(target)
    if device == "cpu":
        np.copyto(target, to(source, "cpu"))
        return
    with on(device):
        if of(source) == "cpu" and target.flags.c_contiguous:
            _upload(np.asarray(source, order="C"), target)
        else:
            target[...] = to(source, device)


def download_later(pairs: list[tuple[Array, np.ndarray[Any, Any]]]) -> Callable[[], None]:
    """Copy device arrays into pinned host arrays of the same shape and dtype, without waiting.

    The copies run beside the current stream of each device, after what is on it now and before
    what is put on it later, so the caller may go on changing the arrays.

    Returns:
        A function that waits until every copy has arrived.
    """
    side_streams: dict[str, Any] = {}
    sources = []
    for array, host in pairs:
        device = of(array)
        with on(device):
            source = cupy().array(array, order="C", copy=None)
            if device not in side_streams:
                side_streams[device] = cupy().cuda.Stream(non_blocking=True)
            sources.append((device, source, host))
    for device, stream in side_streams.items():
        with on(device):
            stream.wait_event(cupy().cuda.get_current_stream().record())
    for device, source, host in sources:
        if source.nbytes:
            with on(device):
                source.data.copy_to_host_async(
                    host.ctypes.data, source.nbytes, side_streams[device]
                )
    for device, stream in side_streams.items():
        with on(device):
            cupy().cuda.get_current_stream().wait_event(stream.record())

    def wait() -> None:
        for device, stream in side_streams.items():
            with on(device):
                stream.synchronize()
        sources.clear()

    return wait
