"""Compiles kernel text with the system's C++ compiler; objects are kept on disk by content."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

SHIM = (Path(__file__).parent / "shim.h").read_text(encoding="utf-8")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", *WARNINGS)


class Compiler:
    """Builds the entry points that share a text together, when the first of them is needed."""

    def __init__(self) -> None:
        self._expected: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}
        self._built: dict[tuple[str, tuple[str, ...], str], ctypes.CDLL] = {}

    def expect(self, text: str, options: tuple[str, ...], entries: dict[str, str]) -> None:
        """Take note of entry points: their names, and the definitions that follow the text."""
        fresh = {
            name: entry
            for name, entry in entries.items()
            if (text, options, name) not in self._built
        }
        self._expected.setdefault((text, options), {}).update(fresh)

    def function(self, text: str, options: tuple[str, ...], name: str):
        """Return an entry point that was expected."""
        if (text, options, name) not in self._built:
            waiting = self._expected.pop((text, options))
            library = _build(text, options, [waiting[key] for key in sorted(waiting)])
            self._built.update(((text, options, key), library) for key in waiting)
        return getattr(self._built[text, options, name], name)


def _build(text: str, options: tuple[str, ...], entries: list[str]) -> ctypes.CDLL:
    source = "\n".join([SHIM, text, *entries])
    contract = ("-ffp-contract=off",) if "--fmad=false" in options else ("-mfma",)
    flags = (*FLAGS, *contract, *os.environ.get("EMULATION_CXXFLAGS", "").split())
    key = hashlib.sha256(repr((source, flags)).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"lucid_gpu_emulation_{os.getuid()}"
    library = folder / f"{key}.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        fresh = folder / f"{key}.{os.getpid()}.so"
        command = ["g++", *flags, "-x", "c++", "-", "-o", str(fresh)]
        # A sanitizer that was preloaded watches this process, not the compiler.
        own = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        done = subprocess.run(
            command, input=source, env=own, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the kernel text does not compile:\n{done.stderr}")
        fresh.replace(library)
    return ctypes.CDLL(str(library))


COMPILER = Compiler()
