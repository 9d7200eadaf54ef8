"""What runs here, and what is missing for more."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np

import lucid_gpu
from lucid_gpu import device
from lucid_gpu.display import absent_packages
from lucid_gpu.execution.cpu import thread_count
from lucid_gpu.execution.sources import kernel_directory

DRIVER_RELEASE = Path("/proc/driver/nvidia/version")
KERNEL_CACHE = "~/.cupy/kernel_cache"
"""Where CuPy keeps compiled kernels unless ``CUPY_CACHE_DIR`` says otherwise."""


def report() -> str:
    """Return what was found, one thing a line, and at the end what is missing.

    Example:
        >>> report().splitlines()[0].split()[:1]
        ['lucid_gpu']
    """
    facts = device.describe()
    missing = [f"for a GPU: {reason}" for reason in facts.missing]
    rows = [*_software(facts), *_devices(facts, missing), *_kernels(missing)]
    absent = absent_packages()
    if absent:
        missing.append(f"for the demo: {', '.join(absent)}: pip install 'lucid-gpu[demo]'")
    rows += [("missing", reason) for reason in missing or ["nothing"]]
    return "\n".join(f"{name:13} {text}" for name, text in rows)


def _software(facts: device.Facts) -> list[tuple[str, str]]:
    driver = "not found"
    if facts.driver:
        driver = f"{_driver_release()}runs CUDA up to {facts.driver}"
    return [
        ("lucid_gpu", f"{lucid_gpu.__version__} in {Path(lucid_gpu.__file__).parent}"),
        ("Python", platform.python_version()),
        ("NumPy", np.__version__),
        ("safetensors", version("safetensors")),
        ("CuPy", facts.cupy or "not found"),
        ("CUDA runtime", facts.runtime or "not found"),
        ("NVRTC", facts.compiler or "not found"),
        ("driver", driver),
    ]


def _devices(facts: device.Facts, missing: list[str]) -> list[tuple[str, str]]:
    rows = []
    for gpu in facts.gpus:
        memory = f"{gpu.free / 2**30:.1f} of {gpu.total / 2**30:.1f} GiB free"
        rows.append(
            (gpu.name, f"{gpu.model}, compute capability {gpu.compute_capability}, {memory}")
        )
    try:
        rows.append(("cpu", f"NumPy, steps on {thread_count()} threads"))
    except ValueError as error:
        missing.append(f"for the CPU: {error}")
    rows.append(("default", device.default()))
    return rows


def _kernels(missing: list[str]) -> list[tuple[str, str]]:
    rows = []
    try:
        folder = kernel_directory()
        names = sorted(path.name for path in folder.glob("*.cuh"))
        rows.append(("kernels", f"{folder}: {', '.join(names)}"))
    except FileNotFoundError as error:
        missing.append(f"for a GPU: {error}")
    cache = Path(os.environ.get("CUPY_CACHE_DIR", KERNEL_CACHE)).expanduser()
    sizes = [path.stat().st_size for path in cache.glob("*") if path.is_file()]
    state = f"{len(sizes)} files, {sum(sizes) / 2**20:.1f} MiB" if sizes else "empty"
    return [*rows, ("kernel cache", f"{cache}: {state}")]


def _driver_release() -> str:
    """Return the release of the NVIDIA driver, where Linux tells it."""
    try:
        text = DRIVER_RELEASE.read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(r"Module.*?(\d+\.[\d.]+)", text)
    return f"{found[1]}, " if found else ""
