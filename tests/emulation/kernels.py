"""Emulated kernels: ``RawModule`` and ``RawKernel`` on the very text a GPU would get."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from tests.emulation.arrays import check_operands, ndarray, pointed_at
from tests.emulation.machine import MACHINE, Launch, get_current_stream
from tests.emulation.nvrtc import MAGIC

ERRORS = {
    -1: "cudaErrorMisalignedAddress: misaligned address",
    -2: "cudaErrorLaunchTimeout: threads wait for others that never come",
}


class CUDADriverError(RuntimeError):
    """What the CUDA driver reports."""


class RawModule:
    """Compiled code in a file. Text has no way in: CuPy would flush float32 to zero."""

    def __init__(self, *, path: str) -> None:
        self._path = path

    def get_function(self, name: str) -> RawKernel:
        kernel = RawKernel(self._path, name)
        kernel.function()
        return kernel


class RawKernel:
    """A kernel that is launched on a grid of blocks of threads.

    As CuPy's, it loads its file on each device that it is first launched on.
    """

    num_regs = 32
    local_size_bytes = 0

    def __init__(self, path: str, name: str) -> None:
        self._path, self._name = path, name
        self._functions: dict[int, ctypes._CFuncPtr] = {}

    def function(self):
        if MACHINE.device not in self._functions:
            function = getattr(_library(self._path), self._name, None)
            if function is None:
                raise CUDADriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
            function.restype = ctypes.c_longlong
            self._functions[MACHINE.device] = function
        return self._functions[MACHINE.device]

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, stream=None) -> None:
        stream = stream or get_current_stream()
        if not all(isinstance(argument, tuple) for argument in (grid, block, args)):
            raise TypeError("grid, block and args must be tuples")
        function = self.function()
        values = [_by_value(argument) for argument in args]
        pointers = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, values))

        words = [np.frombuffer(value, np.uint64, len(value) // 8) for value in values]
        tables = [pointed_at(own, stream) for own in words]

        def run(keep=(values, tables)) -> None:
            vectors = function(grid[0], block[0], pointers)
            if vectors < 0:
                raise RuntimeError(ERRORS[vectors])
            MACHINE.record.vectors += vectors

        MACHINE.record.launches.append(Launch(MACHINE.device, self._name, grid[0]))
        stream.submit(run)


def _library(path: str) -> ctypes.CDLL:
    """Load a module on the current device."""
    try:
        magic, _, rest = Path(path).read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise CUDADriverError("CUDA_ERROR_FILE_NOT_FOUND: file not found") from None
    library, _, end = rest.partition(b"\n")
    if (magic + b"\n", end) not in {(MAGIC["sm"], b"\0"), (MAGIC["compute"], b"")}:
        raise CUDADriverError("CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid")
    MACHINE.record.loads.append(path)
    return ctypes.CDLL(library.decode())


def _by_value(argument) -> ctypes.Array:
    """Return what a launch copies: the address of a device array, or one element of NumPy's."""
    if isinstance(argument, ndarray):
        check_operands(argument)
        argument = np.array(argument.data.ptr, np.uint64)
    if not isinstance(argument, np.ndarray) or argument.size != 1:
        raise TypeError("of NumPy's arrays, only those of one element are passed, by value")
    return ctypes.create_string_buffer(argument.tobytes(), argument.nbytes)
