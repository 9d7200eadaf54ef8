"""The GPUs of this machine, and CuPy, which reaches them.

The only module that imports CuPy, on first need, so that importing the package is quick and
works without it. Devices are named ``"cpu"`` and ``"cuda:0"``, ``"cuda:1"``, …
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

INSTALL = (
    "in a clone of lucid_gpu, pip install '.[cuda13]' (NVIDIA driver 580 or newer) or "
    "pip install '.[cuda12]' (driver 525 or newer)"
)
"""What to do where CuPy or a part of it is missing."""


LEGACY = (0, 1)
"""Handles of the legacy default stream: what CUDA takes for it, and what it calls it."""


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


def cupyx() -> Any:
    """Return the module of CuPy's extensions; raises as :func:`cupy` does."""
    cupy()
    import cupyx

    return cupyx


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


def module(device: str) -> Any:
    """Return the array module of a device: ``numpy`` or ``cupy``."""
    return np if device == "cpu" else cupy()


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make ``device`` CuPy's current device inside a ``with`` block (nothing to do for the CPU)."""
    if device == "cpu":
        return contextlib.nullcontext()
    return cupy().cuda.Device(int(device.removeprefix("cuda:")))  # type: ignore[no-any-return]


class _Foreign:
    """A stream of another library, by the protocol that CuPy knows it by."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


@functools.cache
def foreign_stream(device: str, handle: int) -> Any:
    """Return a stream of another library, on a device, as one of CuPy's."""
    stream = cupy().cuda.Stream
    with on(device):
        return stream(null=True) if handle in LEGACY else stream.from_external(_Foreign(handle))


def is_capturing(devices: Iterable[str]) -> bool:
    """Say whether the current stream of one of ``devices``, or of CuPy's device, records a graph.

    Without a GPU among ``devices``, nothing is asked: not even for CuPy's device, which would wake
    CUDA up. Neither is a legacy default stream: it never records, and raises while another does.
    """
    numbers = {int(name.removeprefix("cuda:")) for name in devices if name != "cpu"}
    if not numbers:
        return False
    cuda = cupy().cuda
    streams = map(cuda.get_current_stream, numbers | {cuda.runtime.getDevice()})
    return any(stream.ptr not in LEGACY and stream.is_capturing() for stream in streams)


def refuse_capture(what: str, devices: Iterable[str]) -> None:
    """Raise RuntimeError if a current stream records a graph, of which ``what`` cannot be a part.

    Args:
        what: the name of a function.
        devices: those that it works on.
    """
    if is_capturing(devices):
        raise RuntimeError(f"{what}() cannot be recorded in a CUDA graph: call it outside")
