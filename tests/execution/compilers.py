"""Compilers that count how often they are run, wait for a sign, or fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lucid_gpu.execution import building

SEVEN = 'extern "C" int seven() { return 7; }\n'
"""A text that compiles at once."""


class Compiler(NamedTuple):
    """A script in place of the compiler, and the files by which it is told and tells."""

    path: Path
    runs: Path
    gate: Path

    @property
    def count(self) -> int:
        """How often it was run."""
        return len(self.runs.read_text().splitlines()) if self.runs.exists() else 0

    def open(self) -> None:
        """Let it go on, if it waits."""
        self.gate.touch()


def counting(folder: Path) -> Compiler:
    """Make a compiler that notes each run."""
    return _script(folder, 'exec c++ "$@"')


def waiting(folder: Path) -> Compiler:
    """Make a compiler that begins when its gate is opened."""
    return _script(folder, f'while [ ! -e "{folder}/gate" ]; do sleep 0.01; done\nexec c++ "$@"')


def failing(folder: Path) -> Compiler:
    """Make a compiler that complains."""
    return _script(folder, "echo some words >&2\necho error: out of sorts >&2\nexit 1")


def endless(folder: Path) -> Compiler:
    """Make a compiler that starts another process, writes a file, and never ends."""
    return _script(folder, f'sleep 600 &\necho $! >> "{folder}/runs"\ntouch "$TMPDIR/left"\nwait')


def _script(folder: Path, body: str) -> Compiler:
    compiler = Compiler(folder / "compiler", folder / "runs", folder / "gate")
    compiler.path.write_text(f'#!/bin/sh\necho $$ >> "{compiler.runs}"\n{body}\n')
    compiler.path.chmod(0o700)
    return compiler


def run(script: str, *arguments: str, **environment: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter, for which any warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        | {name: str(value) for name, value in environment.items()},
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def value(build: building.Build) -> int:
    """Return what the built text of :data:`SEVEN` says."""
    assert build.library is not None, build.failure
    return int(build.library.seven())
