"""Emulated kernels: ``RawModule`` and ``ElementwiseKernel`` on the very text a GPU would get."""

from __future__ import annotations

import ctypes
import hashlib

import numpy as np

from tests.emulation.arrays import check_operands, ndarray, pointed_at
from tests.emulation.compiler import COMPILER
from tests.emulation.machine import MACHINE, Launch, get_current_stream

C_TYPES = {"float32": "float", "float64": "double"}


def _symbol(*parts: str) -> str:
    return "entry_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class RawModule:
    """A text with kernels, named by C++ expressions."""

    def __init__(self, *, code: str, options: tuple = (), name_expressions=None) -> None:
        self._code, self._options = code, options
        self._entries = {
            name: f'extern "C" bool {_symbol(name)}(unsigned grid, unsigned block, void** args) '
            f"{{ return emulation::launch({name}, grid, block, args); }}"
            for name in name_expressions
        }
        entries = {_symbol(name): text for name, text in self._entries.items()}
        COMPILER.expect(code, options, entries)

    def get_function(self, name: str) -> RawKernel:
        if name not in self._entries:
            raise KeyError(f"{name} is none of the name expressions")
        MACHINE.record.compiles.append(name)
        return RawKernel(name, COMPILER.function(self._code, self._options, _symbol(name)))


class RawKernel:
    """A kernel that is launched on a grid of blocks of threads."""

    num_regs = 32
    local_size_bytes = 0

    def __init__(self, name: str, function) -> None:
        self._name, self._function = name, function
        self._function.restype = ctypes.c_bool

    def __call__(self, grid: tuple, block: tuple, args: tuple, *, stream=None) -> None:
        stream = stream or get_current_stream()
        if not all(isinstance(argument, tuple) for argument in (grid, block, args)):
            raise TypeError("grid, block and args must be tuples")
        values = [_by_value(argument) for argument in args]
        pointers = (ctypes.c_void_p * len(args))(*map(ctypes.addressof, values))

        words = [np.frombuffer(value, np.uint64, len(value) // 8) for value in values]
        tables = [pointed_at(own, stream) for own in words]

        def run(keep=(values, tables)) -> None:
            _raise_if_misaligned(self._function(grid[0], block[0], pointers))

        MACHINE.record.launches.append(Launch(MACHINE.device, self._name, grid[0]))
        stream.submit(run)


def _by_value(argument) -> ctypes.Array:
    """Return what a launch copies: the address of a device array, or one element of NumPy's."""
    if isinstance(argument, ndarray):
        check_operands(argument)
        argument = np.array(argument.data.ptr, np.uint64)
    if not isinstance(argument, np.ndarray) or argument.size != 1:
        raise TypeError("of NumPy's arrays, only those of one element are passed, by value")
    return ctypes.create_string_buffer(argument.tobytes(), argument.nbytes)


class ElementwiseKernel:
    """A text that updates one element, run over arrays of any strides."""

    def __init__(
        self,
        in_params: str,
        out_params: str,
        operation: str,
        name: str = "kernel",
        reduce_dims: bool = True,
        preamble: str = "",
        no_return: bool = False,
        options: tuple = (),
    ) -> None:
        if not no_return:
            raise NotImplementedError("the emulation makes no outputs")
        self.in_params = [tuple(param.split()) for param in in_params.split(",")]
        self.out_params = [tuple(param.split()) for param in out_params.split(",")]
        if any(name == "i" for _, name in self.in_params + self.out_params):
            raise ValueError("Can not use 'i' as a parameter name")
        self.operation, self._name = operation, name
        self._preamble, self._options = preamble, options
        self._symbol = _symbol(in_params, out_params, operation)
        COMPILER.expect(preamble, options, {self._symbol: self._entry()})
        self._function = None

    def __call__(self, *args) -> None:
        if len(args) != len(self.in_params) + len(self.out_params):
            raise TypeError(f"Wrong number of arguments for {self._name!r}: {len(args)}")
        check_operands(*args)
        arrays = [
            self._operand(*pair)
            for pair in zip(self.in_params + self.out_params, args, strict=True)
        ]
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
        if any(array.shape != shape for array in arrays[len(self.in_params) :]):
            raise ValueError("Out shape is mismatched")
        if 0 in shape:
            return
        if self._function is None:
            MACHINE.record.compiles.append(self._name)
            self._function = COMPILER.function(self._preamble, self._options, self._symbol)
        strides = np.array(
            [np.broadcast_to(array.view(np.ndarray), shape).strides for array in arrays], np.int64
        )
        extents = np.array(shape, np.int64)
        pointers = (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))

        def run(keep=arrays) -> None:  # what a launch refers to stays until it has run
            self._function(
                ctypes.c_longlong(int(np.prod(shape))),
                len(shape),
                ctypes.c_void_p(extents.ctypes.data),
                pointers,
                ctypes.c_void_p(strides.ctypes.data),
            )

        MACHINE.record.launches.append(Launch(MACHINE.device, self._name, 1))
        get_current_stream().submit(run)

    def _operand(self, param: tuple[str, str], value) -> np.ndarray:
        dtype, name = param
        if isinstance(value, ndarray):
            if value.dtype != dtype:
                raise TypeError(f"Type is mismatched. {name} {value.dtype} {dtype}")
            return value
        if param in self.out_params:
            raise TypeError("Output arguments type must be cupy.ndarray")
        return np.array(value, dtype)

    def _entry(self) -> str:
        loads = [
            f"{const} {C_TYPES[dtype]}& {name} = emulation::Strided{{data[{k}], strides + {k} * "
            f"ndim}}.at<{const} {C_TYPES[dtype]}>(_index, ndim, shape);"
            for k, (const, (dtype, name)) in enumerate(
                [("const", param) for param in self.in_params]
                + [("", param) for param in self.out_params]
            )
        ]
        return (
            f'extern "C" void {self._symbol}(long long size, int ndim, const long long* shape, '
            "char** data, const long long* strides) { for (long long _index = 0; _index < size; "
            f"++_index) {{ {' '.join(loads)} {self.operation}; }} }}"
        )


def _raise_if_misaligned(fault: bool) -> None:
    if fault:
        raise RuntimeError("cudaErrorMisalignedAddress: misaligned address")
