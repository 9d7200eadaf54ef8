"""Compiles kernel text with the system's C++ compiler; objects are kept on disk by content."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

SHIM = (Path(__file__).parent / "shim.h").read_text(encoding="utf-8")
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
FLAGS = ("-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", *WARNINGS)

WAITING = ("#define EMULATION_THREADS_WAIT",)
"""What precedes a text whose threads wait for each other: it runs slower."""


class CompilerError(RuntimeError):
    """The text does not compile."""


class Compiler:
    """Builds the entry points that share a text together, when the first of them is needed."""

    def __init__(self) -> None:
        self._expected: dict[str, dict[str, str]] = {}
        self._built: dict[tuple[str, str], Path] = {}

    def expect(self, text: str, entries: dict[str, str]) -> None:
        """Take note of entry points: their names, and the definitions that follow the text."""
        fresh = {name: entry for name, entry in entries.items() if (text, name) not in self._built}
        self._expected.setdefault(text, {}).update(fresh)

    def library(self, text: str, entries: dict[str, str]) -> Path:
        """Return a library that has some entry points, and all those that were expected."""
        places = {self._built.get((text, name)) for name in entries}
        if len(places) == 1 and (place := places.pop()) is not None:
            return place
        waiting = self._expected.pop(text, {}) | entries
        library = _build(text, [waiting[key] for key in sorted(waiting)])
        self._built.update(((text, key), library) for key in waiting)
        return library


def _build(text: str, entries: list[str]) -> Path:
    source = "\n".join([*(WAITING if "__sync" in text else ()), SHIM, text, *entries])
    flags = (*FLAGS, *os.environ.get("EMULATION_CXXFLAGS", "").split())
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
            raise CompilerError(f"the kernel text does not compile:\n{done.stderr}")
        fresh.replace(library)
    return library


COMPILER = Compiler()
