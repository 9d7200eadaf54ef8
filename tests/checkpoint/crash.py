"""One save in a process of its own, under strace: recorded, killed, or given errors.

``strace`` attaches when the child is ready, so its counts begin with the first call of the save.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import shutil
import subprocess
import warnings
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from lucid_gpu.checkpoint import Checkpointer, CheckpointError

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

STRACE = shutil.which("strace")
CALLS = "%file,%desc"
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = -1


def tree(step: int) -> dict[str, object]:
    return {"step": step, "w": np.arange(300.0) * step, "b": [np.full(3, step), "text"]}


def prepare(directory: Path) -> None:
    """Save two steps, so that the save under test writes the third and removes the first."""
    with Checkpointer(directory, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, tree(step))
    (directory / ".tmp-step-000000000003-0123abcd").mkdir()
    (directory / ".tmp-step-000000000003-0123abcd" / "data-00000.safetensors").write_bytes(b"half")


def _save(directory: Path, connection: Connection) -> None:
    """Save step 3, and say what came of it."""
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    connection.send_bytes(b"ready")
    connection.recv_bytes()
    outcome = b""
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with Checkpointer(directory, keep=2) as checkpointer:
                checkpointer.save(3, tree(3))
                outcome = b"saved, and told" if told else b"saved"
    except CheckpointError as error:
        outcome = outcome or f"refused: {error}".encode()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
        outcome = f"escaped: {error!r}".encode()
    connection.send_bytes(outcome)
    os._exit(0)


def run(directory: Path, log: Path, *options: str) -> tuple[str, int | None]:
    """Save step 3 under strace; return what the child said (if anything) and its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe()
    child = context.Process(target=_save, args=(directory, there))
    child.start()
    there.close()
    assert here.recv_bytes() == b"ready"
    command = [STRACE, "-p", str(child.pid), "-o", str(log), "-e", f"trace={CALLS}", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        attached = strace.stderr.readline()
        here.send_bytes(b"go")
        try:
            said = here.recv_bytes().decode()
        except (EOFError, ConnectionResetError):
            said = ""
        child.join()
    here.close()
    if "attached" not in attached:
        raise PermissionError(attached.strip())
    return said, child.exitcode


def calls(log: Path) -> list[str]:
    """Return the names of the system calls in a log, between the child's first and last word."""
    found = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    last_word = len(found) - 1 - found[::-1].index("write")
    return [name for name in found[:last_word] if name != "read"]


def places(log: Path) -> list[tuple[str, int]]:
    """Return every call of a log as the name and the count by which strace finds it."""
    seen: Counter[str] = Counter()
    result = []
    for name in calls(log):
        seen[name] += 1
        result.append((name, seen[name]))
    return result


def changes(log: Path) -> list[str]:
    """Return the calls of a log that change files, by the names that Python has for them."""
    names = {"mkdirat": "mkdir", "renameat": "rename", "write": "write", "fsync": "fsync"}
    result = []
    for line in log.read_text().splitlines():
        name = line.partition("(")[0]
        if name == "openat" and "O_CREAT" in line:
            result.append("open")
        elif name == "unlinkat":
            result.append("rmdir" if "AT_REMOVEDIR" in line else "unlink")
        elif name in names:
            result.append(names[name])
    return result[:-1]
