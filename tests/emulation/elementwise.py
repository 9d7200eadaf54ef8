"""Emulated ``cupy.ElementwiseKernel``, which only peers of the benchmarks use."""

from __future__ import annotations

import ctypes

import numpy as np

from tests.emulation.arrays import check_operands, ndarray
from tests.emulation.compiler import COMPILER
from tests.emulation.machine import MACHINE, Launch, get_current_stream
from tests.emulation.nvrtc import symbol

C_TYPES = {"float32": "float", "float64": "double"}


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
    ) -> None:
        if not no_return:
            raise NotImplementedError("the emulation makes no outputs")
        self.in_params = [tuple(param.split()) for param in in_params.split(",")]
        self.out_params = [tuple(param.split()) for param in out_params.split(",")]
        if any(name == "i" for _, name in self.in_params + self.out_params):
            raise ValueError("Can not use 'i' as a parameter name")
        self.operation, self._name = operation, name
        self._preamble = preamble
        self._symbol = symbol("\0".join([in_params, out_params, operation]))
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
            library = COMPILER.library(self._preamble, {self._symbol: self._entry()})
            self._function = getattr(ctypes.CDLL(str(library)), self._symbol)
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
