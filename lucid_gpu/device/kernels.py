"""CUDA C++ text as ``cupy.RawKernel``, compiled by NVRTC with exactly the options given here.

CuPy's own way to compile appends ``-ftz=true`` to every compilation, so that float32 below
1.2e-38 counts as zero, where NumPy has subnormal numbers. CuPy still loads and launches what is
compiled here. NVRTC needs no CUDA headers for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lucid_gpu import disk_cache
from lucid_gpu.device import gpu

OPTIONS = ("--std=c++17", "--fmad=false")
"""Without fused multiply-add, so that CUDA and NumPy agree to the bit; beside ``-arch``."""

OLDEST = 70
"""The least compute capability, 10 times as a number: from 7.0 on, arguments are read in place."""


class KernelError(RuntimeError):
    """A kernel cannot be compiled or loaded; the text says why, and what to do."""


class Image(NamedTuple):
    """Compiled code: a cubin or PTX, and the name in it of each name expression."""

    code: bytes
    lowered: dict[str, str]


def compiler_version() -> tuple[int, int]:
    """Return the version of NVRTC.

    Raises:
        KernelError: CuPy does not find it: it was installed without the parts of CUDA it needs.
    """
    try:
        major, minor = gpu.installed_cupy().cuda.nvrtc.getVersion()  # type: ignore[union-attr]
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        what = str(error).strip().partition("\n")[0]
        raise KernelError(
            f"NVRTC, which compiles the kernels, was not found ({what}): {gpu.INSTALL}"
        ) from error
    return int(major), int(minor)


def architecture(capability: int, supported: Collection[int]) -> str:
    """Return what to compile for: ``sm_90``, or for GPUs newer than NVRTC the PTX of an older one.

    Args:
        capability: of the GPU, 10 times as a number: 90 for 9.0.
        supported: those that NVRTC knows.

    Raises:
        KernelError: the GPU is too old for the kernels or for this NVRTC.

    Example:
        >>> architecture(90, (80, 90)), architecture(103, (80, 90))
        ('sm_90', 'compute_90')
    """
    spelled = f"{capability // 10}.{capability % 10}"
    if capability < OLDEST:
        raise KernelError(
            f"its compute capability is {spelled}, and the kernels need "
            f"{OLDEST // 10}.{OLDEST % 10} (Volta) or newer: step on another GPU or on the CPU"
        )
    if capability in supported:
        return f"sm_{capability}"
    older = [known for known in supported if known < capability]
    if not older:
        raise KernelError(
            f"its compute capability is {spelled}, and this NVRTC compiles for "
            f"{min(supported) / 10:.1f} or newer: install an older one, {gpu.INSTALL}"
        )
    return f"compute_{max(older)}"


def kernel(source: str, name: str) -> Any:
    """Return a kernel of a text on the current device, which a process loads once.

    Args:
        source: CUDA C++, which includes nothing.
        name: a C++ expression that names the kernel.

    Raises:
        KernelError: as :func:`load`.
    """
    return _kernel(source, name, gpu.cupy().cuda.Device().id)


@cache
def _kernel(source: str, name: str, device_id: int) -> Any:  # noqa: ARG001 - of one device each
    (own,) = load(source, [name])
    return own


def load(source: str, names: Sequence[str]) -> list[Any]:
    """Return kernels of a text on the current device, from the disk cache or newly compiled.

    Each device has modules of its own: a kernel is for the device it was loaded on.

    Args:
        source: CUDA C++, which includes nothing.
        names: C++ expressions, each the name of a kernel, ``scale<float>`` for example.

    Returns:
        A ``cupy.RawKernel`` for each name.

    Raises:
        KernelError: the device is too old, the text does not compile, or the driver refuses it.
    """
    cuda = gpu.cupy().cuda
    version = compiler_version()
    device = cuda.Device()
    try:
        target = architecture(int(device.compute_capability), cuda.nvrtc.getSupportedArchs())
    except KernelError as error:
        raise KernelError(f"cuda:{device.id} cannot be used: {error}") from error
    suffix = ".cubin" if target.startswith("sm_") else ".ptx"
    key = disk_cache.key(source, tuple(names), OPTIONS, target, version)
    entry = disk_cache.find(key, suffix)
    if entry is not None:
        try:
            return _functions(entry, names)
        except KernelError:
            pass  # deleted meanwhile, or refused: compiled anew, it is loaded or explained
    image = compiled(source, names, target)
    entry = disk_cache.keep(key, suffix, *image)
    if entry is not None:
        return _functions(entry, names)
    # A loaded module needs its file no longer.
    with tempfile.TemporaryDirectory(prefix="lucid_gpu") as folder:
        path = Path(folder, f"{key}{suffix}")
        path.write_bytes(image.code)
        return _functions(disk_cache.Entry(path, image.lowered), names)


def compiled(source: str, names: Sequence[str], target: str) -> Image:
    """Return a text compiled by NVRTC.

    Args:
        source: CUDA C++.
        names: expressions that name kernels.
        target: as :func:`architecture` returns it.

    Raises:
        KernelError: it does not compile; the text has the compiler's log.
    """
    nvrtc = gpu.cupy().cuda.nvrtc
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    try:
        for name in names:
            nvrtc.addNameExpression(program, name)
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={target}"))
        lowered = {name: nvrtc.getLoweredName(program, name) for name in names}
        if target.startswith("sm_"):
            # CuPy drops the last byte, a zero, as if it ended a string.
            return Image(nvrtc.getCUBIN(program) + b"\0", lowered)
        return Image(nvrtc.getPTX(program), lowered)
    except nvrtc.NVRTCError as error:
        log = nvrtc.getProgramLog(program).strip()
        raise KernelError(
            f"NVRTC does not compile {', '.join(names)} for {target} ({error}). It said:\n{log}"
        ) from error
    finally:
        nvrtc.destroyProgram(program)


def _functions(entry: disk_cache.Entry, names: Sequence[str]) -> list[Any]:
    cupy = gpu.cupy()
    try:
        module = cupy.RawModule(path=str(entry.path))
        return [module.get_function(entry.notes[name]) for name in names]
    except (cupy.cuda.driver.CUDADriverError, KeyError) as error:
        raise KernelError(
            f"the NVIDIA driver does not load {', '.join(names)} ({error}); it must be as new as "
            f"CuPy's CUDA: {gpu.INSTALL}"
        ) from error
