"""Compiles the kernels' rules for the CPU, where the system has a C++ compiler.

NumPy passes over a block once per operation; compiled code passes once for all of them, with the
same operations in the same order, so that the result is the same to the bit. Compilation runs in
the background, and only for work that is worth it: until it is done, and wherever there is no
compiler, NumPy steps. ``LUCID_GPU_CPU=numpy`` keeps it to NumPy, ``LUCID_GPU_CPU=compiled`` has
the first step wait for the compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lucid_gpu.execution import plan
from lucid_gpu.execution.plan import Rule
from lucid_gpu.execution.sources import joined

FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-x", "c++", "-include", "math.h",
    "-D__device__=", "-D__forceinline__=inline",
    # The rounding of each operation stays; errno and traps, which nobody reads, forbid vectors.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

WORTHWHILE = 1 << 26
"""Elements to be stepped by NumPy before a compiler is called: about a tenth of a second's work."""

MODES = ("auto", "numpy", "compiled")

Update = Callable[..., None]


def compiler() -> str | None:
    """Return the path of the system's C++ compiler, or None; ``CXX`` names another one."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((path for path in map(shutil.which, names) if path), None)


def outlook() -> str:
    """Say in words whether compiled code will take over from NumPy, and when."""
    path, mode = compiler(), _mode()
    if mode == "numpy":
        return "compiled code never takes over: LUCID_GPU_CPU is 'numpy'"
    if path is None:
        return "compiled code never takes over: no C++ compiler was found"
    after = "at the first step" if mode == "compiled" else f"after {WORTHWHILE:,} updates"
    return f"code compiled by {path} takes over {after}, to the same bits"


class Build:
    """A rule's variant on its way from text to a function.

    Args:
        rule: the optimizer class.
        variant: the choice of its switches.
        dtype: of parameters, gradients and slots.
        path: the compiler.
    """

    def __init__(self, rule: type[Rule], variant: Any, dtype: np.dtype[Any], path: str) -> None:
        self._rule = rule
        self._used = rule.used_slots(variant)
        self._dtype = dtype
        self._update: Update | None = None
        source = _source(rule, variant, dtype)
        try:
            folder = cache_directory()
            self._library = folder / f"{_key(source, path)}.so"
            self._compiling = None if self._library.exists() else self._compile(path, source)
        except OSError:  # no place for it, or no running the compiler: NumPy goes on
            self._library, self._compiling = Path(), None
        if self._compiling is None:
            self._load()

    def update(self) -> Update | None:
        """Return the function once it is ready; it takes what the rule's ``update`` takes."""
        if self._compiling is not None and self._compiling.poll() is not None:
            if self._compiling.returncode == 0:
                self._fresh.replace(self._library)
            self._compiling = None
            self._load()
        return self._update

    def wait(self) -> Update | None:
        """Return the function, or None if it cannot be had, as soon as that is known."""
        if self._compiling is not None:
            self._compiling.wait()
        return self.update()

    def _compile(self, path: str, source: str) -> subprocess.Popen[bytes]:
        self._fresh = self._library.with_suffix(f".{os.getpid()}")
        process = subprocess.Popen(
            [path, *FLAGS, "-", "-o", str(self._fresh)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin as text:
            text.write(source.encode())  # one that dies early is found out by its status
        return process

    def _load(self) -> None:
        try:
            function = ctypes.CDLL(str(self._library)).step
        except (OSError, AttributeError):
            return
        address = ctypes.c_void_p
        function.argtypes = [address, ctypes.c_longlong, address, address, address]
        function.restype = None
        slots_type = address * max(1, self._used)

        def update(scalars: Any, variant: Any, *arrays: Any) -> None:
            used = [array.ctypes.data for array in arrays[: 2 + self._used]]
            if any(place % self._dtype.itemsize for place in used):
                self._rule.update(scalars, variant, *arrays)  # vectors need aligned elements
                return
            constants = np.array(scalars, self._dtype)
            param, grad, *slots = used
            count = arrays[0].size
            function(constants.ctypes.data, count, param, grad, slots_type(*slots))

        self._update = update


@cache
def build(rule: type[Rule], variant: Any, dtype: np.dtype[Any]) -> Build | None:
    """Begin to build a variant, once in a process; None where there is no compiler."""
    path = compiler()
    return None if path is None else Build(rule, variant, dtype, path)


def update_of(rule: type[Rule], variant: Any, dtype: np.dtype[Any], stepped: int) -> Update:
    """Return what updates a contiguous block: compiled code if it is there, else NumPy's twin.

    Args:
        rule: the optimizer class.
        variant: the choice of its switches.
        dtype: of parameters, gradients and slots.
        stepped: how many elements were stepped so far; few do not call a compiler.

    Raises:
        ValueError: ``LUCID_GPU_CPU`` is none of its values.
    """
    mode = _mode()
    if mode == "numpy" or (mode == "auto" and stepped < WORTHWHILE):
        return rule.update
    own = build(rule, variant, dtype)
    compiled = own and (own.wait() if mode == "compiled" else own.update())
    return compiled or rule.update


def _mode() -> str:
    mode = os.environ.get("LUCID_GPU_CPU", MODES[0])
    if mode not in MODES:
        raise ValueError(f"LUCID_GPU_CPU must be one of {', '.join(MODES)}, not {mode!r}")
    return mode


def cache_directory() -> Path:
    """Return the folder of compiled code, made if need be: of the user's cache, for them alone."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home, "lucid_gpu")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _source(rule: type[Rule], variant: Any, dtype: np.dtype[Any]) -> str:
    functor, scalar = plan.functor(rule, variant, dtype), plan.c_type(dtype)
    return joined("rule", rule.kernel, "host_step") + (
        f'\nextern "C" void step(const {functor}* rule, long long count, {scalar}* param, '
        f"const {scalar}* grad, {scalar}* const* slots) "
        "{ host_step(*rule, count, param, grad, slots); }\n"
    )


def _key(source: str, path: str) -> str:
    """Return the name of what a compiler makes of a text on this kind of CPU."""
    stat = Path(path).resolve().stat()
    facts = (source, FLAGS, path, stat.st_size, stat.st_mtime_ns, platform.machine(), _cpu())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
