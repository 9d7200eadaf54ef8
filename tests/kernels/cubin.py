"""What a cubin, an ELF file, says of its kernels: the registers and the local memory they take."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

# Attributes of the section .nv.info, each of a function: its symbol and a number.
FRAME_SIZE, MIN_STACK_SIZE, REGISTERS = 0x11, 0x12, 0x2F
SIZED = 4  # the format of attributes that are followed by their size


class Resources(NamedTuple):
    """Registers of a thread, and bytes of local memory, to which registers are spilled."""

    registers: int
    local: int


def resources(cubin: bytes) -> dict[str, Resources]:
    """Return the resources of each function of a cubin, by its lowered name."""
    sections = _sections(cubin)
    names = [_string(sections[".strtab"], at) for at in _symbol_names(sections[".symtab"])]
    found: dict[int, dict[str, int]] = {}
    for attribute, symbol, value in _attributes(sections[".nv.info"]):
        found.setdefault(attribute, {})[names[symbol]] = value
    return {
        name: Resources(registers, max(found[kind][name] for kind in (FRAME_SIZE, MIN_STACK_SIZE)))
        for name, registers in found[REGISTERS].items()
    }


def _sections(cubin: bytes) -> dict[str, bytes]:
    assert cubin[:4] == b"\x7fELF"
    (start,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, strings = struct.unpack_from("<3H", cubin, 0x3A)
    headers = [struct.unpack_from("<2I4Q", cubin, start + size * i) for i in range(count)]
    contents = [cubin[offset : offset + length] for *_, offset, length in headers]
    return {
        _string(contents[strings], header[0]): content
        for header, content in zip(headers, contents, strict=True)
    }


def _symbol_names(table: bytes) -> list[int]:
    return [name for name, *_ in struct.iter_unpack("<IBBHQQ", table)]


def _string(table: bytes, at: int) -> str:
    return table[at : table.index(b"\0", at)].decode()


def _attributes(info: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield attributes of functions: which one, the symbol and the number."""
    at = 0
    while at < len(info):
        form, attribute, size = struct.unpack_from("<2BH", info, at)
        at += 4
        if form == SIZED:
            if attribute in (FRAME_SIZE, MIN_STACK_SIZE, REGISTERS):
                yield attribute, *struct.unpack_from("<2I", info, at)
            at += size
