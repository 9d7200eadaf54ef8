"""What a disk may hold after a power cut: a model of files that were written but not synced.

A file or directory is an inode with a log of changes. A sync settles the changes of one inode;
any other change may be lost, torn, zeroed or kept, whatever became of the ones around it. After
a failed sync, the changes before it stay in doubt for ever, as on Linux.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import math
import os
import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = 0
OUTSIDE = -1
"""The inode that stands for every directory above the root, to which nothing happens."""

WRITE_FATES = ("kept", "lost", "torn", "zeroed")
ENTRY_FATES = ("kept", "lost")
MAX_FATES = 64


class Killed(BaseException):
    """The end of a program in the middle of a call."""


@dataclass
class Op:
    """One recorded call on one inode; ``call`` is the function of ``os`` that made it."""

    call: str
    inode: int
    change: tuple[Any, ...] | None = None
    failed: bool = False


@dataclass
class Recorder:
    """Records what a program does to the files below ``root``, as changes of inodes.

    Args:
        root: an existing directory; what is in it is taken to be safely on disk.
        fail_after: a pattern: the first sync of a directory whose last change made a name that it
            matches fails with EIO.
        kill: that sync ends the program instead: until ``revive``, no call does anything.
    """

    root: Path
    fail_after: str = "(?!)"
    kill: bool = False
    ops: list[Op] = field(default_factory=list)
    acknowledged: dict[int, int] = field(default_factory=dict)
    initial: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._count = itertools.count()
        self._live: dict[int, dict[str, int] | str] = {}
        self._descriptors: dict[int, int] = {}
        self._is_killed = self._has_failed = False
        self._scan(self.root)
        self._real = {name: getattr(os, name) for name in self._patches()}

    def acknowledge(self, step: int) -> None:
        """Note that ``step`` has been reported as saved."""
        self.acknowledged[len(self.ops)] = step

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name, patch in self._patches().items():
                stack.enter_context(mock.patch.object(os, name, patch))
            yield

    def revive(self) -> None:
        """Let another program begin where one was killed."""
        self._is_killed = False

    def _patches(self) -> dict[str, Any]:
        names = ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir")
        patches = {name: self._mortal(getattr(self, f"_{name}")) for name in names}
        return {**patches, "close": self._close}

    def _mortal(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def alive(*args: Any, **kwargs: Any) -> Any:
            if self._is_killed:
                raise Killed
            return call(*args, **kwargs)

        return alive

    def _scan(self, path: Path) -> int:
        inode = next(self._count)  # the root comes first
        if path.is_dir():
            entries = {child.name: self._scan(child) for child in sorted(path.iterdir())}
            self.initial[inode], self._live[inode] = dict(entries), entries
        else:
            self.initial[inode], self._live[inode] = path.read_bytes(), "file"
        return inode

    def _place(self, path: Any, dir_fd: int | None) -> tuple[int, str] | None:
        """Return the directory inode and the name that a path means; None outside the root."""
        if dir_fd is not None:
            directory = self._descriptors.get(dir_fd)
            return None if directory is None else (directory, os.fspath(path))
        path = Path(path)
        if self.root not in path.parents:
            return None
        inode = ROOT
        *parents, name = path.relative_to(self.root).parts
        for part in parents:
            inode = self._live[inode][part]
        return inode, name

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd)
        descriptor = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        if place is None:
            if Path(path) == self.root:
                self._descriptors[descriptor] = ROOT
            elif Path(path) in self.root.parents:
                self._descriptors[descriptor] = OUTSIDE
            return descriptor
        directory, name = place
        if flags & os.O_CREAT:
            inode = self._create("open", directory, name, b"")
        else:
            inode = self._live[directory][name]
        self._descriptors[descriptor] = inode
        return descriptor

    def _create(self, call: str, directory: int, name: str, content: Any) -> int:
        inode = next(self._count)
        self.initial[inode] = content
        self._live[inode] = dict(content) if content == {} else "file"
        self._live[directory][name] = inode
        self.ops.append(Op(call, directory, ("add", name, inode)))
        return inode

    def _close(self, descriptor: int) -> None:
        self._descriptors.pop(descriptor, None)
        self._real["close"](descriptor)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        place = self._place(path, dir_fd)
        if place is not None:
            self._create("mkdir", *place, {})

    def _write(self, descriptor: int, data: Any) -> int:
        count = self._real["write"](descriptor, data)
        if descriptor in self._descriptors:
            inode = self._descriptors[descriptor]
            self.ops.append(Op("write", inode, ("write", bytes(data[:count]))))
        return count

    def _fsync(self, descriptor: int) -> None:
        if descriptor not in self._descriptors:
            return
        inode = self._descriptors[descriptor]
        fails = not self._has_failed and self._made_by_last_change(inode, self.fail_after)
        if fails and self.kill:
            self._is_killed = self._has_failed = True
            raise Killed
        self.ops.append(Op("fsync", inode, failed=fails))
        if fails:
            self._has_failed = True
            raise OSError(errno.EIO, "Input/output error")

    def _made_by_last_change(self, inode: int, pattern: str) -> bool:
        changes = [op.change for op in self.ops if op.inode == inode and op.change is not None]
        if not changes or changes[-1][0] not in ("add", "move"):
            return False
        name = changes[-1][1 if changes[-1][0] == "add" else 2]
        return re.fullmatch(pattern, name) is not None

    def _rename(self, old: Any, new: Any, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        self._real["rename"](old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        directory, name = self._place(old, src_dir_fd)
        assert self._place(new, dst_dir_fd) == (directory, new)
        inode = self._live[directory].pop(name)
        self._live[directory][new] = inode
        self.ops.append(Op("rename", directory, ("move", name, new, inode)))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("unlink", path, dir_fd)

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._remove("rmdir", path, dir_fd)

    def _remove(self, call: str, path: Any, dir_fd: int | None) -> None:
        self._real[call](path, dir_fd=dir_fd)
        place = self._place(path, dir_fd)
        if place is not None:
            directory, name = place
            del self._live[directory][name]
            self.ops.append(Op(call, directory, ("remove", name)))

    def states(self) -> Iterator[tuple[int, Any]]:
        """Yield what each possible disk holds, with the newest step acknowledged before."""
        seen = set()
        for cut in range(len(self.ops) + 1):
            acknowledged = max((s for at, s in self.acknowledged.items() if at <= cut), default=0)
            doubtful = self._doubtful(cut)
            for fates in _fates([self.ops[index] for index in doubtful], seed=cut):
                fate = dict(zip(doubtful, fates, strict=True))
                state = self._disk(cut, fate)
                if (acknowledged, state) not in seen:
                    seen.add((acknowledged, state))
                    yield acknowledged, state

    def _doubtful(self, cut: int) -> list[int]:
        """Return the changes before the cut that no successful sync has settled."""
        pending: dict[int, list[int]] = {}
        doomed: list[int] = []
        for index, op in enumerate(self.ops[:cut]):
            if op.change is not None:
                pending.setdefault(op.inode, []).append(index)
            else:
                settled = pending.pop(op.inode, [])
                doomed += settled if op.failed else []
        return sorted([*doomed, *itertools.chain(*pending.values())])

    def _disk(self, cut: int, fate: dict[int, str]) -> Any:
        """Return the tree of files, as nested tuples, that these fates leave on the disk."""
        inodes = {i: dict(c) if isinstance(c, dict) else c for i, c in self.initial.items()}
        for index, op in enumerate(self.ops[:cut]):
            if op.change is not None:
                inodes[op.inode] = _changed(inodes[op.inode], op.change, fate.get(index, "kept"))
        return _tree(inodes, ROOT)


def _fates(ops: list[Op], seed: int) -> Iterator[tuple[str, ...]]:
    """Yield the fates of changes: all combinations if few, else all near the ends and a sample."""
    choices = [WRITE_FATES if op.call == "write" else ENTRY_FATES for op in ops]
    if math.prod(map(len, choices)) <= MAX_FATES:
        yield from itertools.product(*choices)
        return
    for common in ENTRY_FATES:
        base = [common] * len(ops)
        yield tuple(base)
        for place, fates in enumerate(choices):
            for fate in fates:
                yield (*base[:place], fate, *base[place + 1 :])
    chance = random.Random(seed)
    for _ in range(MAX_FATES):
        yield tuple(map(chance.choice, choices))


def _changed(content: Any, change: tuple[Any, ...], fate: str) -> Any:
    kind, *rest = change
    if kind == "write":
        (data,) = rest
        half = len(data) // 2
        written = {"kept": data, "lost": b"", "torn": data[:half], "zeroed": bytes(len(data))}
        return content + written[fate]
    if fate == "lost":
        return content
    if kind == "remove":
        content.pop(rest[0], None)
    elif kind == "add":
        content[rest[0]] = rest[1]
    else:
        content.pop(rest[0], None)
        content[rest[1]] = rest[2]
    return content


def _tree(inodes: dict[int, Any], inode: int) -> Any:
    content = inodes[inode]
    if isinstance(content, bytes):
        return content
    return tuple(sorted((name, _tree(inodes, child)) for name, child in content.items()))


def materialize(state: Any, path: Path) -> None:
    """Write a state to real files below ``path``."""
    if isinstance(state, bytes):
        path.write_bytes(state)
        return
    path.mkdir()
    for name, child in state:
        materialize(child, path / name)
