"""What runs here, and what is missing for more."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lucid_gpu
from lucid_gpu import disk_cache
from lucid_gpu.command.display import INSTALL, absent_packages
from lucid_gpu.device import gpu, kernels
from lucid_gpu.execution import building
from lucid_gpu.execution.cpu_code import cpu_code, why_not_compiled
from lucid_gpu.execution.sources import kernel_directory
from lucid_gpu.execution.threads import thread_count

DRIVER_RELEASE = Path("/proc/driver/nvidia/version")


class Gpu(NamedTuple):
    """One GPU: its compute capability, 10 times as a number, and its memory in bytes."""

    name: str
    model: str
    capability: int
    free: int
    total: int


class Cuda(NamedTuple):
    """What a GPU needs, as found on this machine; None stands for what was not found.

    Attributes:
        cupy: version of CuPy.
        runtime: version of the CUDA runtime that CuPy uses.
        compiler: version of NVRTC, which compiles the kernels.
        driver: the newest CUDA version that the NVIDIA driver can run.
        gpus: those that the driver shows.
        missing: what stands in the way, in words, each with its remedy.
    """

    cupy: str | None
    runtime: str | None
    compiler: str | None
    driver: str | None
    gpus: list[Gpu]
    missing: list[str]


def cuda() -> Cuda:
    """Return what was found of CuPy, CUDA, the driver and the GPUs."""
    missing = [reason for reason in [gpu.why_unavailable()] if reason]
    cupy = gpu.installed_cupy()
    if cupy is None:
        return Cuda(None, None, None, None, [], missing)
    runtime = cupy.cuda.runtime
    compiler = None
    supported: tuple[int, ...] = ()
    try:
        compiler = ".".join(map(str, kernels.compiler_version()))
        supported = cupy.cuda.nvrtc.getSupportedArchs()
    except kernels.KernelError as error:
        missing.append(str(error))
    gpus = []
    for index in range(gpu.count()):
        try:
            gpus.append(_gpu(cupy, index))
            kernels.architecture(gpus[-1].capability, supported or [gpus[-1].capability])
        except (kernels.KernelError, runtime.CUDARuntimeError) as error:
            missing.append(f"cuda:{index} cannot be used: {error}")
    return Cuda(
        cupy.__version__,
        _spelled(runtime.runtimeGetVersion()),
        compiler,
        _spelled(runtime.driverGetVersion()),
        gpus,
        missing,
    )


def _gpu(cupy: Any, index: int) -> Gpu:
    properties = cupy.cuda.runtime.getDeviceProperties(index)
    capability = 10 * properties["major"] + properties["minor"]
    free, total = cupy.cuda.Device(index).mem_info
    return Gpu(f"cuda:{index}", properties["name"].decode(), capability, free, total)


def _spelled(version: int) -> str | None:
    """Spell a version as CUDA counts them: 13020 is 13.2, and 0 is none."""
    return f"{version // 1000}.{version % 1000 // 10}" if version else None


def report() -> str:
    """Return what was found, one thing a line, and at the end what is missing.

    Example:
        >>> report().splitlines()[0].split()[:1]
        ['lucid_gpu']
    """
    facts = cuda()
    missing = [f"for a GPU: {reason}" for reason in facts.missing]
    rows = [*_software(facts), *_devices(facts, missing), *_kernels(missing)]
    absent = absent_packages()
    if absent:
        missing.append(f"for the demo: {', '.join(absent)}: {INSTALL}")
    rows += [("missing", reason) for reason in missing or ["nothing"]]
    return "\n".join(f"{name:13} {text}" for name, text in rows)


def _software(facts: Cuda) -> list[tuple[str, str]]:
    driver = "not found"
    if facts.driver:
        driver = f"{_driver_release()}runs CUDA up to {facts.driver}"
    return [
        ("lucid_gpu", f"{lucid_gpu.__version__} in {Path(lucid_gpu.__file__).parent}"),
        ("Python", platform.python_version()),
        ("NumPy", np.__version__),
        ("CuPy", facts.cupy or "not found"),
        ("CUDA runtime", facts.runtime or "not found"),
        ("NVRTC", facts.compiler or "not found"),
        ("driver", driver),
    ]


def _devices(facts: Cuda, missing: list[str]) -> list[tuple[str, str]]:
    rows = []
    for each in facts.gpus:
        memory = f"{each.free / 2**30:.1f} of {each.total / 2**30:.1f} GiB free"
        rows.append(
            (each.name, f"{each.model}, compute capability {each.capability / 10:.1f}, {memory}")
        )
    try:
        rows.append(("cpu", f"{_cpu_code(missing)}, steps on {thread_count()} threads"))
    except ValueError as error:
        missing.append(f"for the CPU: {error}")
    rows.append(("default", gpu.default()))
    return rows


def _cpu_code(missing: list[str]) -> str:
    if cpu_code() == "numpy":
        return "NumPy, as LUCID_GPU_CPU says"
    reason = why_not_compiled()
    if reason is None:
        return f"compiled code ({' '.join(building.compiler() or ())})"
    missing.append(f"for a fast CPU: {reason}")
    return "nothing" if cpu_code() == "compiled" else "NumPy"


def _kernels(missing: list[str]) -> list[tuple[str, str]]:
    rows = []
    try:
        folder = kernel_directory()
        names = sorted(path.name for path in folder.glob("*.cuh"))
        rows.append(("kernels", f"{folder}: {', '.join(names)}"))
    except FileNotFoundError as error:
        missing.append(f"for a GPU: {error}")
    return [*rows, ("kernel cache", _cache())]


def _cache() -> str:
    """Return where compiled code is kept, and how much of it."""
    folder = disk_cache.directory()
    if folder is None:
        return "none, for there is no home directory: set LUCID_GPU_CACHE_DIR"
    if not disk_cache.is_writable():
        return f"{folder}: cannot be written, so each process compiles: set LUCID_GPU_CACHE_DIR"
    sizes = [path.stat().st_size for path in folder.glob("*") if path.is_file()]
    state = f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB" if sizes else "empty"
    return f"{folder}: {state}"


def _driver_release() -> str:
    """Return the release of the NVIDIA driver, where Linux tells it."""
    try:
        text = DRIVER_RELEASE.read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"Module.*?(\d+\.[\d.]+)", text)
    return f"{found[1]}, " if found else ""
