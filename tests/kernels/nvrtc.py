"""NVRTC without a GPU: compiles a text as CuPy would and returns the PTX of each kernel."""

from __future__ import annotations

import re

from cuda.bindings import nvrtc

from lucid_gpu.execution.cuda import OPTIONS

CUPY_OPTIONS = ("--std=c++17", "--device-as-default-execution-space", "-ftz=true")
"""What CuPy 14 adds to the options of the caller."""

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")


def compile_kernels(source: str, names: list[str], architecture: str) -> dict[str, str]:
    """Return the PTX of each name expression; warnings are errors."""
    program = _checked(nvrtc.nvrtcCreateProgram(source.encode(), b"kernels.cu", 0, [], []))
    for name in names:
        _checked(nvrtc.nvrtcAddNameExpression(program, name.encode()))
    flags = [flag.encode() for flag in (*OPTIONS, f"-arch={architecture}", *CUPY_OPTIONS)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(flags), flags)
    log = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
    _checked(nvrtc.nvrtcGetProgramLog(program, log))
    text = bytes(log).rstrip(b"\0").decode()
    assert (status, text) == (nvrtc.nvrtcResult.NVRTC_SUCCESS, ""), text
    assert _checked(nvrtc.nvrtcGetCUBINSize(program)) > 0
    ptx = bytearray(_checked(nvrtc.nvrtcGetPTXSize(program)))
    _checked(nvrtc.nvrtcGetPTX(program, ptx))
    entries = _split(bytes(ptx).decode())
    return {
        name: entries[_checked(nvrtc.nvrtcGetLoweredName(program, name.encode())).decode()]
        for name in names
    }


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
