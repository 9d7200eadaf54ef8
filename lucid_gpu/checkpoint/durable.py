"""How a directory reaches the disk whole or not at all, and how one leaves it.

Everything that is being written or removed is named ``.tmp-…`` and held under ``flock``, so a
leftover of a dead writer is told from the work of a living one. All calls that a crash could
come between are in this file.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import secrets
import shutil
import threading
from typing import TYPE_CHECKING, Any

import xxhash

from lucid_gpu.checkpoint.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_LEFTOVER = re.compile(r"\.tmp-(.+)-[0-9a-f]{8}")
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LONGEST_NAME = 255 - len(".tmp--01234567")
_ATTEMPTS = 100

AHEAD_BYTES = 8 << 20
"""The disk is told to begin with so many bytes of a file while more are written."""

_SYNC_FILE_RANGE_WRITE = 2

_held: set[int] = set()
"""Descriptors that carry a lock. A forked child lets go of its copies, which would keep the locks
of this process after its death."""

_forks = threading.RLock()


def make_directories(path: Path) -> None:
    """Create a directory and its missing parents, and make the entries of all of them durable.

    Also of those that are there: whoever made them may not have synced them.
    """
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
    for parent in dict.fromkeys([*_parents(path), *_parents(path.resolve())]):
        # Who may enter a directory, but not list it, did not make what is in it.
        with contextlib.suppress(PermissionError), open_directory(parent) as directory:
            os.fsync(directory)


def _parents(path: Path) -> Iterator[Path]:
    """Yield the parents of a path, as far as they are on the same file system."""
    for entry, parent in zip([path, *path.parents], path.parents, strict=False):
        if entry.is_mount():
            return
        yield parent


@contextlib.contextmanager
def open_directory(path: Path | str, parent: int | None = None) -> Iterator[int]:
    """Open a directory for use as ``dir_fd``."""
    descriptor = os.open(path, DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        close(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor through which nothing is written, so that no error of it matters."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def hold(path: Path | str, parent: int | None = None) -> int | None:
    """Open a directory and take its lock, until ``release``; None when someone else holds it."""
    with _forks:
        descriptor = os.open(path, DIRECTORY, dir_fd=parent)
        _held.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException as error:
        _drop(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def release(descriptor: int) -> None:
    """Release the lock of a directory, also for processes that inherited it, and close it."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    _drop(descriptor)


def _drop(descriptor: int) -> None:
    with _forks:
        _held.discard(descriptor)
        close(descriptor)


def _let_go() -> None:
    for descriptor in _held:
        close(descriptor)
    _held.clear()
    _forks.release()


os.register_at_fork(before=_forks.acquire, after_in_parent=_forks.release, after_in_child=_let_go)


def publish(target: Path, write: Callable[[int], None]) -> None:
    """Make the directory ``target`` appear with all that ``write`` puts into it, or not at all.

    Args:
        target: the directory; it must not exist, its parent must.
        write: puts files into the open directory that it is given, with ``new_file``.

    Raises:
        OSError: the system refused a call; nothing appeared.
    """
    with open_directory(target.parent) as parent:
        working, directory = _new_directory(parent, target)
        renamed = False
        try:
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
        finally:
            release(directory)


def _new_directory(parent: int, target: Path) -> tuple[str, int]:
    """Make a directory to write into, and hold it; another process may sweep it before."""
    for _ in range(_ATTEMPTS):
        working = _working_name(target.name)
        os.mkdir(working, dir_fd=parent)
        directory = None
        try:
            directory = hold(working, parent)
            if directory is not None:
                there = os.stat(working, dir_fd=parent, follow_symlinks=False)
                if os.path.samestat(there, os.fstat(directory)):
                    return working, directory
                release(directory)
        except FileNotFoundError:
            if directory is not None:
                release(directory)
        except BaseException:
            if directory is not None:
                release(directory)
            with contextlib.suppress(OSError):
                os.rmdir(working, dir_fd=parent)
            raise
    raise CheckpointError(f"{target}: other processes keep cleaning up here: save again")


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


def publish_file(target: Path, write: Callable[[int], None]) -> None:
    """Put a file in the place of ``target``, with all that ``write`` puts into it, or not at all.

    Raises:
        OSError: the system refused a call.
    """
    with open_directory(target.parent) as parent:
        working = _working_name(target.name)
        try:
            with new_file(parent, working) as descriptor:
                write(descriptor)
            os.rename(working, target.name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(working, dir_fd=parent)
            raise
        os.fsync(parent)


def writer(descriptor: int) -> Callable[[Any], None]:
    """Return what writes into a new file, and has the disk begin at once.

    Otherwise that would be idle until the sync at the end, which is still what makes it durable:
    this is a hint, of which no error is asked for, or taken from the sync.
    """
    written = begun = 0

    def write(data: Any) -> None:
        nonlocal written, begun
        write_all(descriptor, data)
        written += memoryview(data).nbytes
        if written - begun >= AHEAD_BYTES:
            _begin(descriptor, begun, written - begun)
            begun = written

    return write


def _begin(descriptor: int, start: int, count: int) -> None:
    """Have the kernel begin to write a range of a file to the disk, where it can be asked to."""
    with contextlib.suppress(AttributeError, OSError):
        begin = ctypes.CDLL(None).sync_file_range
        begin.argtypes = ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint
        begin(descriptor, start, count, _SYNC_FILE_RANGE_WRITE)


def write_all(descriptor: int, data: Any) -> None:
    """Write all of ``data``, however little one call takes."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def retire(parent: int, names: list[str]) -> None:
    """Remove directories: renamed durably first, so that none is ever seen half removed.

    Raises:
        OSError: the system refused a call; a directory is there as it was, or its remains are a
            leftover, for ``sweep``.
    """
    if not names:
        return
    aside: dict[str, str] = {}
    try:
        for name in names:
            working = _working_name(name)
            os.rename(name, working, src_dir_fd=parent, dst_dir_fd=parent)
            aside[name] = working
        os.fsync(parent)
    except BaseException:
        # The kernel may have dropped what it could not sync, and another sync would not bring it
        # back: only under their old names can they be renamed durably again.
        for name, working in aside.items():
            with contextlib.suppress(OSError):
                os.rename(working, name, src_dir_fd=parent, dst_dir_fd=parent)
        raise
    for working in aside.values():
        # Another process may sweep it first.
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(working, dir_fd=parent)


def sweep(parent: int, target: str | None = None) -> None:
    """Remove what dead writers left, of one target or of all.

    Raises:
        OSError: the directory cannot be listed or synced.
    """
    with contextlib.ExitStack() as stack:
        dead = []
        for name in os.listdir(parent):
            match = _LEFTOVER.fullmatch(name)
            if match is None or (target is not None and match[1] != _label(target)):
                continue
            # Another process may finish or sweep it first.
            with contextlib.suppress(OSError):
                leftover = hold(name, parent)
                if leftover is not None:
                    stack.callback(release, leftover)
                    dead.append(name)
        if dead:
            # Whoever renamed it may have died before the sync, and then its old name may return.
            os.fsync(parent)
        for name in dead:
            with contextlib.suppress(OSError):
                shutil.rmtree(name, dir_fd=parent)


def _working_name(name: str) -> str:
    return f".tmp-{_label(name)}-{secrets.token_hex(4)}"


def _label(name: str) -> str:
    """Return what stands for a name in those of its leftovers: a digest, if it is too long."""
    raw = os.fsencode(name)
    return name if len(raw) <= _LONGEST_NAME else xxhash.xxh3_128_hexdigest(raw)
