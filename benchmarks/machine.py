"""What the numbers were measured on."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from lucid_gpu.device import gpu
from lucid_gpu.execution.cpu import thread_count

PACKAGES = (
    "lucid-gpu", "numpy", "torch", "jax", "jaxlib", "optax", "cupy-cuda12x", "cupy-cuda13x",
    "safetensors",
)  # fmt: skip


@functools.cache
def facts(home: str) -> dict[str, Any]:
    """Return name, memory, driver and the like of a device."""
    return _cpu() if home == "cpu" else _gpu(home)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that take part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def slug(name: str) -> str:
    """Return a device's name as a part of a file's name.

    Example:
        >>> slug("NVIDIA H200")
        'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _cpu() -> dict[str, Any]:
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    threads = thread_count()
    return {
        "name": f"{_processor()}, {threads} threads",
        "threads": threads,
        "memory_bytes": pages * page,
        "system": platform.platform(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text("utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _gpu(home: str) -> dict[str, Any]:
    runtime = gpu.cupy().cuda.runtime
    properties = runtime.getDeviceProperties(int(home.removeprefix("cuda:")))
    return {
        "name": properties["name"].decode(),
        "memory_bytes": int(properties["totalGlobalMem"]),
        "multiprocessors": int(properties["multiProcessorCount"]),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "driver": _driver(),
        "cuda_driver_version": int(runtime.driverGetVersion()),
        "cuda_runtime_version": int(runtime.runtimeGetVersion()),
        "host": _cpu(),
    }


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({error})"
    return answer.stdout.split("\n", maxsplit=1)[0].strip()
