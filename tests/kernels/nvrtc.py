"""NVRTC without a GPU: compiles a text with the options of the package."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from cuda.bindings import nvrtc

from lucid_gpu.device.kernels import OPTIONS
from tests.kernels.cubin import resources

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")


def architectures(turn: int) -> tuple[str, ...]:
    """Return what to compile for: one of them by turns, or all of them if that is asked for."""
    if os.environ.get("LUCID_GPU_ALL_ARCHITECTURES") == "1":
        return ARCHITECTURES
    return (ARCHITECTURES[turn % len(ARCHITECTURES)],)


class Kernel(NamedTuple):
    """A kernel as PTX, and what its cubin takes of a GPU: registers and bytes of local memory."""

    ptx: str
    registers: int
    local: int


def compile_kernels(source: str, names: list[str], architecture: str) -> dict[str, Kernel]:
    """Return the kernel of each name expression; warnings are errors."""
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    for name in names:
        _checked(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    flags = [flag.encode() for flag in (*OPTIONS, f"-arch={architecture}")]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    text = bytes(log).rstrip(b"\0").decode()
    assert (status, text) == (nvrtc.nvrtcResult.NVRTC_SUCCESS, ""), text
    cubin = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
    _checked(nvrtc.nvrtcGetCUBIN(program, cubin))
    assert cubin[-1] == 0  # the byte that CuPy drops
    ptx = bytearray(_checked(nvrtc.nvrtcGetPTXSize(program)))
    _checked(nvrtc.nvrtcGetPTX(program, ptx))
    entries, taken = _split(bytes(ptx).decode()), resources(bytes(cubin))
    kernels = {}
    for name in names:
        lowered = _checked(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode()
        kernels[name] = Kernel(entries[lowered], *taken[lowered])
    _checked(nvrtc.nvrtcDestroyProgram(program))
    return kernels


def _split(ptx: str) -> dict[str, str]:
    """Return the text of each entry function."""
    _, *entries = ptx.split(".entry ")
    return {re.match(r"\w+", entry)[0]: entry for entry in entries}


def _checked(result: tuple):
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise RuntimeError(_name(status))
    return values[0] if values else None


def _name(status) -> str:
    return nvrtc.nvrtcGetErrorString(status)[1].decode()
