"""CuPy without a GPU: the part of it that lucid_gpu uses, on host memory.

The kernels that a GPU would get are compiled by the system's C++ compiler and run over the very
tables, so that everything between the optimizer and the GPU is tested on any machine. It is as
strict as CuPy about memory of the host and of other devices, about what a capture allows, and
about pinned memory; and it counts what CuPy does not: launches, compilations, allocations.

Kernels and copies obey streams, also lazy ones; array expressions are NumPy's and run at once.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator

import numpy as np

import lucid_gpu.device.keep
import lucid_gpu.device.kernels
import lucid_gpu.execution.measured
from tests.emulation import arrays, kernels, machine, nvrtc
from tests.emulation.machine import MACHINE, Machine


class _Module(types.ModuleType):
    """``cupy``; what is not defined here is NumPy's function, checked and wrapped."""

    def __getattr__(self, name: str):
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value

        def function(*args, **options):
            arrays.check_operands(*args, *options.values())
            return arrays.from_host(value(*arrays.on_host(args), **arrays.on_host(options)))

        return function


def _module() -> types.ModuleType:
    cupy = _Module("cupy")
    cupy.__version__ = "14.2.0"
    cupy.ndarray = arrays.ndarray
    cupy.array = arrays.array
    cupy.asarray = lambda obj, dtype=None, order="K": arrays.array(obj, dtype, None, order)
    cupy.ascontiguousarray = lambda obj, dtype=None: arrays.array(obj, dtype, None, "C")
    cupy.asfortranarray = lambda obj, dtype=None: arrays.array(obj, dtype, None, "F")
    cupy.asnumpy = lambda obj: obj.get() if isinstance(obj, arrays.ndarray) else np.asarray(obj)
    cupy.empty = arrays.empty
    cupy.RawModule = kernels.RawModule
    cupy.cuda = types.SimpleNamespace(
        Device=machine.Device,
        Event=machine.Event,
        Graph=machine.Graph,
        PinnedMemory=arrays.pinned_memory,
        PinnedMemoryPointer=arrays.pinned_memory_pointer,
        Stream=machine.Stream,
        driver=types.SimpleNamespace(CUDADriverError=kernels.CUDADriverError),
        get_current_stream=machine.get_current_stream,
        nvrtc=nvrtc,
        runtime=types.SimpleNamespace(
            CUDARuntimeError=machine.CUDARuntimeError,
            getDevice=lambda: MACHINE.device,
            getDeviceCount=lambda: MACHINE.devices,
            getDeviceProperties=lambda number: {"name": b"Emulated GPU", "major": 9, "minor": 0},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
            hostAllocPortable=1,
            memoryTypeHost=arrays.HOST,
            pointerGetAttributes=arrays.pointer_attributes,
        ),
    )
    return cupy


@contextlib.contextmanager
def installed() -> Iterator[Machine]:
    """Stand in for CuPy inside a ``with`` block and yield the machine."""
    names = ("cupy", "cupyx")
    before = {name: sys.modules.get(name) for name in names}
    MACHINE.reset()
    sys.modules["cupy"] = _module()
    sys.modules["cupyx"] = cupyx = types.ModuleType("cupyx")
    cupyx.empty_pinned = arrays.PINNED.empty
    forget()
    try:
        yield MACHINE
    finally:
        for name in names:
            sys.modules.pop(name)
            if before[name] is not None:
                sys.modules[name] = before[name]
        forget()


def forget() -> None:
    """Clear what lucid_gpu remembers of CuPy, as if the process were a new one."""
    lucid_gpu.device.gpu._probe.cache_clear()
    lucid_gpu.device.kernels._kernel.cache_clear()
    lucid_gpu.execution.measured.forget()
    lucid_gpu.device.keep._kept.clear()
    lucid_gpu.device.keep._flags.clear()
    lucid_gpu.device.keep._zero.cache_clear()
