"""How a directory reaches the disk whole or not at all, and how one leaves it.

Everything that is being written or removed is named ``.tmp-…`` and held under ``flock``, so a
leftover of a dead writer is told from the work of a living one. All calls that a crash could
come between are in this file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Any

from lucid_gpu.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LEFTOVER = re.compile(r"\.tmp-(.+)-[0-9a-f]{8}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def make_directories(path: Path) -> None:
    """Create a directory and its missing parents, and make their entries durable."""
    if path.is_dir():
        return
    make_directories(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir()
    with open_directory(path.parent) as parent:
        os.fsync(parent)


@contextlib.contextmanager
def open_directory(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """Open a directory for use as ``dir_fd``."""
    descriptor = os.open(path, _DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        close(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor through which nothing is written, so that no error of it matters."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Take the lock of an open directory; False when someone else holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release the lock of a directory, also for forked processes that share it, and close it."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    close(descriptor)


def publish(target: Path, write: Callable[[int], None]) -> None:
    """Make the directory ``target`` appear with all that ``write`` puts into it, or not at all.

    Args:
        target: the directory; it must not exist, its parent must.
        write: puts files into the open directory that it is given, with ``new_file``.

    Raises:
        OSError: the system refused a call; nothing appeared.
    """
    with open_directory(target.parent) as parent:
        working = _working_name(target.name)
        os.mkdir(working, dir_fd=parent)
        renamed = False
        try:
            with open_directory(working, parent) as directory:
                _hold(directory, target)
                write(directory)
                os.fsync(directory)
                os.rename(working, target.name, src_dir_fd=parent, dst_dir_fd=parent)
                renamed = True
                os.fsync(parent)
        except BaseException:
            # Nobody was told of a name whose sync failed, and the kernel may have dropped it:
            # another sync would not bring it back, so it is taken back and a new save starts over.
            with contextlib.suppress(OSError):
                if renamed:
                    retire(parent, [target.name])
                else:
                    shutil.rmtree(working, dir_fd=parent)
            raise


@contextlib.contextmanager
def new_file(directory: int, name: str) -> Iterator[int]:
    """Open a new file for writing, and sync it when the block ends without an error."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(name, flags, 0o666, dir_fd=directory)
    try:
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: Any) -> None:
    """Write all of ``data``, however little one call takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def retire(parent: int, names: list[str]) -> None:
    """Remove directories: renamed durably first, so that none is ever seen half removed."""
    if not names:
        return
    working = {name: _working_name(name) for name in names}
    for name, aside in working.items():
        os.rename(name, aside, src_dir_fd=parent, dst_dir_fd=parent)
    os.fsync(parent)
    for aside in working.values():
        # Another process may sweep it first.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(aside, dir_fd=parent)


def sweep(parent: int, target: str | None = None) -> None:
    """Remove what dead writers left, of one target or of all."""
    for name in os.listdir(parent):
        match = _LEFTOVER.fullmatch(name)
        if match is None or target not in (None, match[1]):
            continue
        # Another process may finish or sweep it first.
        with contextlib.suppress(OSError), open_directory(name, parent) as leftover:
            if lock(leftover):
                shutil.rmtree(name, dir_fd=parent)


def _working_name(name: str) -> str:
    return f".tmp-{name}-{secrets.token_hex(4)}"


def _hold(directory: int, target: Path) -> None:
    if not lock(directory):
        raise CheckpointError(f"{target}: another process is cleaning up here: save again")
