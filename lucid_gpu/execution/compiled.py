"""Compiles a rule's kernel text for the CPU, where ``LUCID_GPU_CPU=compiled`` asks for it.

NumPy passes over a block once per operation; compiled code passes once for all of them, with the
same operations in the same order, so that the result is the same to the bit. It takes the
system's C++ compiler, and about a second at the first step of each variant in a process.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.execution import plan
from lucid_gpu.execution.rule import Rule
from lucid_gpu.execution.sources import joined

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-x", "c++", "-include", "math.h",
    "-D__device__=", "-D__forceinline__=inline",
    # The rounding of each operation stays; errno and traps, which nobody reads, forbid vectors.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

MODES = ("numpy", "compiled")

NO_COMPILER = (
    "LUCID_GPU_CPU is 'compiled', but no C++ compiler was found: install g++, name one with CXX, "
    "or leave LUCID_GPU_CPU out to step with NumPy"
)

Update: TypeAlias = Callable[..., bool]


def mode() -> str:
    """Return what steps contiguous blocks: ``LUCID_GPU_CPU``, else ``"numpy"``.

    Raises:
        ValueError: the variable is set to something else.
    """
    asked = os.environ.get("LUCID_GPU_CPU", MODES[0])
    if asked not in MODES:
        raise ValueError(f"LUCID_GPU_CPU must be one of {', '.join(MODES)}, not {asked!r}")
    return asked


def compiler() -> str | None:
    """Return the path of the system's C++ compiler, or None; ``CXX`` names another one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def compiled_update(rule: Rule, variant: Any, dtype: np.dtype[Any]) -> Update | None:
    """Return compiled code that updates contiguous blocks, or None if it is not asked for.

    It is called with the scalars of a row, parameter, gradient and slots, and returns False
    without having changed anything if it cannot update these.

    Args:
        rule: the rule.
        variant: the choice of its switches.
        dtype: of parameters, gradients and slots.

    Raises:
        ValueError: ``LUCID_GPU_CPU`` is none of its values.
        RuntimeError: it is ``"compiled"``, and there is no compiler, or it failed.
    """
    if mode() == "numpy":
        return None
    return _compiled(_source(rule, variant, dtype), len(rule.used_slots(variant)), dtype)


@cache
def _compiled(source: str, used: int, dtype: np.dtype[Any]) -> Update:
    function = _build(source).step
    address = ctypes.c_void_p
    function.argtypes = [address, ctypes.c_longlong, address, address, address]
    function.restype = None
    slots_type = address * max(1, used)

    def update(row: Any, *arrays: Any) -> bool:
        places = [array.ctypes.data for array in arrays]
        if any(place % dtype.itemsize for place in places):
            return False  # vector instructions need aligned elements
        param, grad, *slots = places
        function(row.ctypes.data, arrays[0].size, param, grad, slots_type(*slots))
        return True

    return update


def _build(source: str) -> ctypes.CDLL:
    path = compiler()
    if path is None:
        raise RuntimeError(NO_COMPILER)
    # A loaded library needs its file no longer.
    with tempfile.TemporaryDirectory(prefix="lucid_gpu") as folder:
        library = Path(folder, "rule.so")
        command = [path, *FLAGS, "-", "-o", str(library)]
        result = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
        if result.returncode:
            raise RuntimeError(
                f"{path} failed to compile a rule for the CPU; leave LUCID_GPU_CPU out to step "
                f"with NumPy. It said:\n{result.stderr.strip()}"
            )
        return ctypes.CDLL(str(library))


def _source(rule: Rule, variant: Any, dtype: np.dtype[Any]) -> str:
    functor, scalar = plan.functor(rule, variant, dtype), plan.c_type(dtype)
    return joined("rule", rule.kernel, "host_step") + (
        f'\nextern "C" void step(const Row<{functor}, {scalar}>* row, long long count, '
        f"{scalar}* param, const {scalar}* grad, {scalar}* const* slots) "
        "{ host_step(*row, count, param, grad, slots); }\n"
    )
