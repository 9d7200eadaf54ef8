"""Where the files of a checkpoint lie: in a local directory, or in a store that fsspec knows."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from lucid_gpu.checkpoint import durable, manifest
from lucid_gpu.checkpoint.errors import CheckpointError

Location: TypeAlias = Path | str
"""A local path, or the URL of a directory in a store, such as ``s3://bucket/run``."""

L = TypeVar("L", Path, str, Path | str)

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotOursError(ValueError):
    """Something is there that no save of this version left."""


class Source(NamedTuple):
    """An open file: its size, and what fills a memory from an offset and returns how much."""

    size: int
    read: Callable[[int, memoryview], int]


class Directory(Protocol):
    """The directory of one checkpoint, to be read."""

    def open(self) -> None:
        """Begin; what fails is an OSError."""

    def close(self) -> None:
        """Let go of what was opened."""

    def names(self) -> set[str]:
        """Return the names of the files."""

    def source(self, name: str) -> contextlib.AbstractContextManager[Source]:
        """Open one file."""

    def map(self, name: str) -> memoryview | None:
        """Return a file as memory; None where that cannot be."""

    def is_gone(self) -> bool:
        """Say whether there is no such checkpoint, or no longer."""


def locate(path: str | os.PathLike[str]) -> Location:
    """Return a local path, also for a URL that names one, or any other URL as it is.

    Raises:
        TypeError: the path is bytes.
    """
    text = os.fspath(path)
    if isinstance(text, bytes):
        raise TypeError(f"the path {text!r} must be text: give os.fsdecode of it")
    text = text.removeprefix("file://")
    return text.rstrip("/") if "://" in text else Path(text)


def join(directory: L, name: str) -> L:
    """Return the place of a name in a directory."""
    return directory / name if isinstance(directory, Path) else f"{directory}/{name}"


def directory_at(place: Location) -> Directory:
    """Return the directory of a checkpoint, not yet opened."""
    return LocalDirectory(place) if isinstance(place, Path) else RemoteDirectory(place)


def subdirectories(place: Location) -> list[str]:
    """Return the names of the directories in a directory; links are none."""
    if isinstance(place, Path):
        with os.scandir(place) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    with _store_errors():
        store, root = filesystem(place)
        store.invalidate_cache(root)
        found = store.ls(root, detail=True)
    return [_last(entry["name"]) for entry in found if entry["type"] == "directory"]


def holds_manifest(place: Location) -> bool:
    """Say whether a directory is a checkpoint itself."""
    if isinstance(place, Path):
        return (place / manifest.NAME).exists()
    with _store_errors():
        store, root = filesystem(place)
        return bool(store.exists(f"{root}/{manifest.NAME}"))


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path in it.

    Raises:
        CheckpointError: fsspec, or its package for this kind of store, is missing.
    """
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 - only stores need it

        store, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"{url} cannot be reached: {error}: install fsspec and its package for this kind of "
            "store (pip install '.[remote]' has fsspec)"
        ) from error
    return store, str(root).rstrip("/")


class LocalDirectory:
    """A directory of a file system: all is read from the one that was opened."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._maps: dict[str, memoryview] = {}

    def open(self) -> None:
        """Open the directory."""
        self._descriptor = os.open(self._path, durable.DIRECTORY)

    def close(self) -> None:
        """Close the directory, and let go of the maps that nobody uses."""
        self._maps.clear()
        if self._descriptor is not None:
            durable.close(self._descriptor)

    def names(self) -> set[str]:
        """Return the names of the files."""
        return set(os.listdir(self._descriptor))  # noqa: PTH208 - a descriptor has no Path

    @contextlib.contextmanager
    def source(self, name: str) -> Iterator[Source]:
        """Open one file; what is no regular file is not ours."""
        descriptor = self._open(name)
        try:
            yield Source(os.fstat(descriptor).st_size, partial(_read, descriptor))
        finally:
            os.close(descriptor)

    def map(self, name: str) -> memoryview:
        """Return a file as read-only memory."""
        if name not in self._maps:
            descriptor = self._open(name)
            try:
                self._maps[name] = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
            finally:
                os.close(descriptor)
        return self._maps[name]

    def is_gone(self) -> bool:
        """Say whether the path does not lead to the directory that is, or was to be, read."""
        try:
            there = self._path.stat()
            return self._descriptor is not None and not os.path.samestat(
                there, os.fstat(self._descriptor)
            )
        except OSError as error:
            return error.errno == errno.ENOENT

    def _open(self, name: str) -> int:
        descriptor = os.open(name, _OPEN, dir_fd=self._descriptor)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise NotOursError("it is not a regular file")


class RemoteDirectory:
    """A directory of a store, which is what begins with its name."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store, self._root = filesystem(url)

    def open(self) -> None:
        """Forget what was listed before."""
        with _store_errors():
            self._store.invalidate_cache(self._root)

    def close(self) -> None:
        """Do nothing: the connection is fsspec's."""

    def names(self) -> set[str]:
        """Return the names of the files."""
        with _store_errors():
            return {_last(name) for name in self._store.ls(self._root, detail=False)}

    @contextlib.contextmanager
    def source(self, name: str) -> Iterator[Source]:
        """Look up one file."""
        with _store_errors():
            about = self._store.info(f"{self._root}/{name}")
        if about["type"] != "file":
            raise NotOursError("it is not a file")
        yield Source(about["size"], partial(self._read, name))

    def map(self, _name: str) -> None:
        """Return nothing: what is far away is read."""

    def is_gone(self) -> bool:
        """Say whether there is no manifest, which is written last and removed first."""
        with contextlib.suppress(OSError), _store_errors():
            return not self._store.exists(f"{self._root}/{manifest.NAME}")
        return False

    def _read(self, name: str, offset: int, target: memoryview) -> int:
        with _store_errors():
            path = f"{self._root}/{name}"
            data = self._store.cat_file(path, start=offset, end=offset + len(target))
        target[: len(data)] = data
        return len(data)


def _read(descriptor: int, offset: int, target: memoryview) -> int:
    return os.preadv(descriptor, [target], offset)


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


@contextlib.contextmanager
def _store_errors() -> Iterator[None]:
    """Turn what a store raises into an OSError: each has exceptions of its own."""
    try:
        yield
    except (OSError, CheckpointError):
        raise
    except Exception as error:
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


Create: TypeAlias = Callable[[str], contextlib.AbstractContextManager[Callable[[Any], None]]]
"""Makes a new file, and gives what writes into it; leaving the block without an error keeps it."""


def creator(directory: int) -> Create:
    """Return what makes files in an open local directory, synced when they are done."""

    @contextlib.contextmanager
    def create(name: str) -> Iterator[Callable[[Any], None]]:
        with durable.new_file(directory, name) as descriptor:
            yield durable.writer(descriptor)

    return create


def publish(url: str, write: Callable[[Create], None]) -> None:
    """Have ``write`` put files into a directory of a store, the manifest last.

    A store knows no rename and no lock: the checkpoint is there when its manifest is. What was
    written before an error is removed.

    Raises:
        CheckpointError: there is a checkpoint, or something else, already.
        OSError: the store refused something.
    """
    store, root = filesystem(url)

    @contextlib.contextmanager
    def create(name: str) -> Iterator[Callable[[Any], None]]:
        written = 0

        def put(data: Any) -> None:
            nonlocal written
            file.write(data)
            written += len(data)

        with store.open(f"{root}/{name}", "wb") as file:
            yield put
        store.invalidate_cache(root)
        found = store.info(f"{root}/{name}")["size"]
        if found != written:
            raise OSError(errno.EIO, f"{name} has {found} bytes in the store, not {written}")

    with _store_errors():
        _clear(store, root, url)
        try:
            write(create)
        except BaseException:
            with contextlib.suppress(Exception):
                _clear(store, root, url)
            raise


def _clear(store: Any, root: str, url: str) -> None:
    """Remove the shards of a save that did not come to its manifest."""
    store.invalidate_cache(root)
    if not store.exists(root):
        return
    names = {_last(name) for name in store.ls(root, detail=False)}
    others = sorted(name for name in names if not manifest.is_shard(name))
    if others:
        raise CheckpointError(f"{url} exists, with {others[0]!r:.100}: save under another name")
    for name in names:
        store.rm_file(f"{root}/{name}")
