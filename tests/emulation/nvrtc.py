"""Emulated NVRTC: ``cupy.cuda.nvrtc``, with the system's C++ compiler behind it."""

from __future__ import annotations

import hashlib
import itertools
import re
from dataclasses import dataclass, field

from tests.emulation.compiler import COMPILER, CompilerError
from tests.emulation.machine import MACHINE

MAGIC = {"sm": b"EMULATED CUBIN\n", "compute": b"EMULATED PTX\n"}
LANGUAGE = ("--std=c++17", "--fmad=false")
CODES = {
    "INVALID_PROGRAM": 4,
    "INVALID_OPTION": 5,
    "COMPILATION": 6,
    "NAME_EXPRESSION_NOT_VALID": 11,
}


class NVRTCError(RuntimeError):
    def __init__(self, name: str) -> None:
        super().__init__(f"NVRTC_ERROR_{name} ({CODES[name]})")


@dataclass
class _Program:
    source: str
    names: list[str] = field(default_factory=list)
    log: str = ""
    kind: str = ""
    image: bytes = b""


_programs: dict[int, _Program] = {}
_handles = itertools.count(1)


def getVersion() -> tuple[int, int]:
    return 13, 2


def getSupportedArchs() -> tuple[int, ...]:
    return MACHINE.architectures


def createProgram(source: str, name: str, headers, include_names) -> int:
    if headers or include_names:
        raise NotImplementedError("the emulation has no headers")
    handle = next(_handles)
    _programs[handle] = _Program(source)
    return handle


def destroyProgram(program: int) -> None:
    _at(program)
    del _programs[program]


def addNameExpression(program: int, name: str) -> None:
    _at(program).names.append(name)


def compileProgram(program: int, options: tuple) -> None:
    own = _at(program)
    found = re.fullmatch(r"-arch=(sm|compute)_(\d+)", "".join(options[-1:]))
    if options[:-1] != LANGUAGE or not found or int(found[2]) not in MACHINE.architectures:
        own.log = f"unexpected options: {options}"
        raise NVRTCError("INVALID_OPTION")
    MACHINE.record.compiles += own.names
    try:
        library = COMPILER.library(own.source, entries(own.names))
    except CompilerError as error:
        own.log = str(error)
        raise NVRTCError("COMPILATION") from None
    own.kind = found[1]
    own.image = MAGIC[own.kind] + f"{library}\n".encode() + b"\0"


def getCUBIN(program: int) -> bytes:
    own = _at(program)
    if own.kind != "sm":
        raise RuntimeError("cubin is requested, but the real arch (sm_XX) is not provided")
    return own.image[:-1]  # as CuPy, which takes the last byte for a terminator


def getPTX(program: int) -> bytes:
    return _at(program).image[:-1]


def getProgramLog(program: int) -> str:
    return _at(program).log


def getLoweredName(program: int, name: str) -> str:
    own = _at(program)
    if not own.image or name not in own.names:
        raise NVRTCError("NAME_EXPRESSION_NOT_VALID")
    return symbol(name)


def entries(names) -> dict[str, str]:
    """Return the entry point of each kernel, by its symbol."""
    return {
        symbol(name): f'extern "C" long long {symbol(name)}'
        "(unsigned grid, unsigned block, void** args) "
        f"{{ return emulation::launch({name}, grid, block, args); }}"
        for name in names
    }


def symbol(name: str) -> str:
    return "entry_" + hashlib.sha256(name.encode()).hexdigest()[:16]


def _at(program: int) -> _Program:
    if program not in _programs:
        raise NVRTCError("INVALID_PROGRAM")
    return _programs[program]
