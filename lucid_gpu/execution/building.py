"""Builds C++ text to loaded libraries: beside other work, and once for all processes to come.

A build is a compiler that runs by itself, and is asked whether it is done: there is no thread that
a fork could lose or that an exit would have to wait for.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final, NamedTuple

from lucid_gpu import disk_cache

FLAGS: Final = (
    "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-x", "c++", "-include", "math.h",
    "-D__device__=", "-D__forceinline__=inline",
    # The rounding of each operation stays; errno and traps, which nobody reads, forbid vectors.
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip

NICENESS: Final = 5
"""Of a compiler in the background. Its work has to be done in any case, and the sooner it is, the
sooner steps are fast: it yields to the steps, but is not starved by them."""

CPU_FACTS: Final = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "features", "isa",
)  # fmt: skip
"""Which lines of ``/proc/cpuinfo`` say for what code is made on this machine."""

CPU_INFO = Path("/proc/cpuinfo")

NO_COMPILER: Final = "no C++ compiler was found: install g++, or name one with CXX"


class _Work(NamedTuple):
    """A compiler that runs, the folder in which it does, and what the result is to be called."""

    process: subprocess.Popen[bytes]
    folder: Path
    name: str | None


class Build:
    """A text on its way to a loaded library: pending until it has either that or a failure.

    Attributes:
        library: what was built, once it is there.
        failure: why nothing was built, in a line; None as long as it may be.
        output: what the compiler said when it failed.
    """

    def __init__(self, source: str, command: tuple[str, ...]) -> None:
        self.library: ctypes.CDLL | None = None
        self.failure: str | None = None
        self.output = ""
        self._source = source
        self._command = command
        self._work: _Work | None = None
        self._lock = threading.RLock()

    @property
    def is_pending(self) -> bool:
        """Whether it is neither ready nor failed."""
        return self.library is None and self.failure is None

    def poll(self) -> bool:
        """Get on with it without waiting, and say whether it is still pending."""
        if self.is_pending and self._lock.acquire(blocking=False):
            try:
                self._begin(NICENESS)
                if self._work is not None and self._work.process.poll() is not None:
                    self._finish(self._work)
            finally:
                self._lock.release()
        return self.is_pending

    def wait(self) -> None:
        """Wait until it is ready or failed."""
        with self._lock:
            self._begin(0)
            if self._work is not None:
                self._work.process.wait()
            if self._work is not None:  # unless a signal handler stepped meanwhile
                self._finish(self._work)

    def stop(self) -> None:
        """Give up unless the compiler is done, and leave nothing of it behind."""
        with self._lock:
            work = self._work
            if work is not None and work.process.poll() is not None:
                self._finish(work)
            if self.is_pending:
                self.failure = "the interpreter exits"
            if self._work is not None:
                _kill(self._work.process)
                _remove(self._work.folder)
                self._work = None

    def forget(self) -> None:
        """Leave the compiler to the process that this one was forked from."""
        if self._work is not None:
            self._work.process.returncode = 0  # it is no child of this process: ask for it no more
        self._work = None
        self._lock = threading.RLock()

    def _begin(self, niceness: int) -> None:
        """Load the library from disk, or start the compiler, unless that was done already."""
        if not self.is_pending or self._work is not None:
            return
        name = _name(self._source, self._command)
        kept = disk_cache.find(name, ".so") if name else None
        if kept is not None:
            with contextlib.suppress(OSError):  # of a folder from which nothing may be executed
                self.library = ctypes.CDLL(str(kept.path))
                return
        try:
            self._work = _compile(self._source, self._command, name)
        except OSError as error:
            self.failure = f"{self._command[0]} cannot be run: {error}"
            return
        if niceness:
            _lower_priority(self._work.process.pid, niceness)
        _stop_with_a_worker()

    def _finish(self, work: _Work) -> None:
        self._work = None
        try:
            self._load(work)
        except OSError as error:
            self.failure = f"{self._command[0]} built nothing that can be loaded: {error}"
        finally:
            _remove(work.folder)

    def _load(self, work: _Work) -> None:
        if work.process.returncode:
            self.output = (work.folder / "stderr").read_text("utf-8", "replace").strip()
            said = _first_error(self.output) or f"it exits with {work.process.returncode}"
            self.failure = f"{self._command[0]} failed: {said}"
            return
        built = work.folder / "library.so"
        content = built.read_bytes()
        kept = disk_cache.keep(work.name, ".so", content, {}) if work.name else None
        if kept is not None:
            with contextlib.suppress(OSError):
                self.library = ctypes.CDLL(str(kept.path))
                return
        self.library = ctypes.CDLL(str(built))  # once loaded, it needs its file no longer


_builds: dict[tuple[str, tuple[str, ...]], Build] = {}
_lock = threading.RLock()
_is_exiting = False


def compiler() -> tuple[str, ...] | None:
    """Return the command of the system's C++ compiler, or None; ``CXX`` names another one."""
    named = shlex.split(os.environ.get("CXX", ""))
    commands = [named] if named else [["c++"], ["g++"], ["clang++"]]
    found = ((shutil.which(name), rest) for name, *rest in commands)
    return next(((path, *rest) for path, rest in found if path), None)


def start(source: str) -> Build:
    """Return the build of a text, started if it was not; one that is on disk is ready at once."""
    command = compiler()
    if command is None:
        build = Build(source, ())
        build.failure = NO_COMPILER
        return build
    with _lock:
        build = _builds.setdefault((source, command), Build(source, command))
    if _is_exiting and build.is_pending:
        build.stop()
    build.poll()
    return build


def finish(source: str) -> Build:
    """Return the build of a text when it is done, tried once more if it had failed."""
    command = compiler()
    with _lock:
        if command and (known := _builds.get((source, command))) and known.failure:
            del _builds[source, command]
    build = start(source)
    build.wait()
    return build


def wait() -> None:
    """Wait until nothing is pending: a benchmark then measures one kind of code."""
    for build in list(_builds.values()):
        build.wait()


def _name(source: str, command: tuple[str, ...]) -> str | None:
    """Return the name on disk; None if nobody can tell on which machines the code would run."""
    features = _features()
    path = Path(command[0]).resolve()
    try:
        status = path.stat()
    except OSError:
        return None
    # Another version of the compiler is told without running it.
    version = f"{path} {status.st_size} {status.st_mtime_ns}"
    return disk_cache.key(source, FLAGS, command, version, features) if features else None


def _compile(source: str, command: tuple[str, ...], name: str | None) -> _Work:
    folder = Path(tempfile.mkdtemp(prefix="lucid_gpu-"))
    try:
        text = folder / "source.cpp"
        text.write_text(source, encoding="utf-8")
        with (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(
                [*command, *FLAGS, str(text), "-o", str(folder / "library.so")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                # Its own files go where they are removed; its errors are read in English.
                env={**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"},
                start_new_session=True,  # an interrupt from the keyboard is not meant for it
            )
    except BaseException:
        _remove(folder)
        raise
    return _Work(process, folder, name)


def _lower_priority(pid: int, niceness: int) -> None:
    if hasattr(os, "setpriority"):
        with contextlib.suppress(OSError):
            own = os.getpriority(os.PRIO_PROCESS, 0)
            os.setpriority(os.PRIO_PGRP, pid, own + niceness)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a compiler together with the processes that it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _remove(folder: Path) -> None:
    """Remove a folder into which a process that was killed may still have written."""
    for _ in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.01)


def _features() -> str | None:
    """Return what tells this CPU from those that could not run code made for it, if known."""
    try:
        with CPU_INFO.open(encoding="utf-8") as lines:
            facts: list[str] = []
            for line in lines:
                if not line.strip() and facts:  # the other cores are the same
                    break
                if line.partition(":")[0].strip() in CPU_FACTS:
                    facts.append(line)
    except OSError:
        return None
    return "".join(facts) or None


def _first_error(output: str) -> str | None:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else None)


def _stop_all() -> None:
    global _is_exiting  # noqa: PLW0603 - there is one interpreter
    _is_exiting = True
    for build in list(_builds.values()):
        build.stop()


def _stop_with_a_worker() -> None:
    """Let a process of :mod:`multiprocessing` clean up too: a forked one skips ``atexit``."""
    utilities = sys.modules.get("multiprocessing.util")
    if utilities is not None:
        utilities.Finalize(None, _stop_all, exitpriority=0)


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - another thread of the parent may have held it
    _lock = threading.RLock()
    for build in _builds.values():
        build.forget()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
