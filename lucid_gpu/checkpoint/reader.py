"""Reading one checkpoint: nothing is believed before it was checked against the manifest."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.checkpoint import manifest, shards, storage
from lucid_gpu.checkpoint.decode import Decoder, TreeError
from lucid_gpu.checkpoint.errors import (
    CheckpointError,
    DamagedCheckpointError,
    ForeignCheckpointError,
    MissingCheckpointError,
    UnreadableCheckpointError,
)
from lucid_gpu.checkpoint.storage import NotOursError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from lucid_gpu.checkpoint.place import Place
    from lucid_gpu.checkpoint.storage import Location, Source
    from lucid_gpu.checkpoint.tree import Node
    from lucid_gpu.device.arrays import Array

_SCRATCH_BYTES = 1 << 20
"""Verifying reads through a buffer of this size, which stays in a core's own cache."""

_BATCH_BYTES = 8 << 20
"""One thread reads at least this much before it takes the next piece of work."""

_PART_BYTES = 64 << 20

_NOTHING = np.empty(0)
_NOT_OURS = (errno.ENOTDIR, errno.ELOOP, errno.ENXIO)
"""Errors of opening that tell of a file in place of a directory, of a link, of a socket."""


class Reader:
    """An open checkpoint whose manifest, listing, sizes and headers were checked.

    Args:
        path: the directory of the checkpoint, local or in a store.

    Raises:
        DamagedCheckpointError: it is not what was written.
        MissingCheckpointError: there is none.
        ForeignCheckpointError: it is of a newer version, or holds files that are not its own.
        UnreadableCheckpointError: the system refuses to read now.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        self._directory = storage.directory_at(path)
        self._scratch = threading.local()
        with contextlib.ExitStack() as stack, self._named(""):
            stack.callback(self._directory.close)
            self._directory.open()
            with self._named(manifest.NAME):
                self.manifest = manifest.from_bytes(self._read_manifest())
                self._check_tree()
            self._check_listing()
            self._offsets = self._check_headers()
            self._order = {name: place for place, name in enumerate(self._offsets)}
            self._stack = stack.pop_all()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the directory."""
        self._stack.close()

    def verify(self, names: Iterable[str]) -> None:
        """Check the digests of some tensors, without keeping their bytes."""
        self._check(names, self._hash)

    def read(self, targets: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Read tensors into C-contiguous host arrays, and check their digests."""

        def read_tensor(source: Source, name: str) -> str:
            memory = shards.as_bytes(targets[name])
            return shards.read_tensor(source, self._offsets[name], memory)

        self._check(targets, read_tensor)

    def load(self, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Return some tensors as new host arrays."""
        arrays = {}
        for name in names:
            tensor = self.manifest.tensors[name]
            try:
                # np.empty would make one character of an empty string type.
                arrays[name] = np.ndarray(tensor.shape, tensor.dtype)
            except MemoryError as error:
                raise CheckpointError(
                    f"{self.path}: no memory for {self._place(name)}: {tensor.nbytes} bytes"
                ) from error
        self.read(arrays)
        return arrays

    def mapped(self, name: str) -> np.ndarray[Any, Any]:
        """Return a tensor as a read-only array on the mapped file, once its digest was checked."""
        tensor = self.manifest.tensors[name]
        if not tensor.nbytes:
            return self._loaded(name)
        with self._named(tensor.file, name):
            start = self._offsets[name]
            file = self._directory.map(tensor.file)
            if file is None:
                return self._loaded(name)
            memory = file[start : start + tensor.nbytes]
            if manifest.digest(memory) != tensor.digest:
                raise ValueError("its bytes do not match the digest in the manifest")
        return np.ndarray(tensor.shape, tensor.dtype, memory)

    def _loaded(self, name: str) -> np.ndarray[Any, Any]:
        array = self.load([name])[name]
        array.flags.writeable = False
        return array

    def names(self) -> dict[str, str]:
        """Return the tensor of each path in the tree at which an array stands."""
        names: dict[str, str] = {}

        def resolve(tensor: str, place: Place) -> np.ndarray[Any, Any]:
            # Only of 1.1 are the names of tensors paths; and two keys may read as one path.
            if names.setdefault(place.name or tensor, tensor) != tensor:
                names[tensor] = tensor
            return _NOTHING

        Decoder(resolve).decode(self.manifest.tree)
        return names

    def parts(self, names: Iterable[str]) -> Iterator[list[str]]:
        """Divide tensors into lists to be loaded one after the other.

        The host may have less memory than what they go to, so a part is as much as keeps the
        threads busy, or one larger tensor.
        """
        part: list[str] = []
        room = _PART_BYTES
        for name in sorted(names, key=self._order.__getitem__):
            if part and self.manifest.tensors[name].nbytes > room:
                yield part
                part, room = [], _PART_BYTES
            part.append(name)
            room -= self.manifest.tensors[name].nbytes
        if part:
            yield part

    def decode(self, arrays: Mapping[str, Array], node: Node) -> Any:
        """Return the tree of a node, with these arrays in it."""
        return Decoder(lambda name, _: arrays[name]).decode(node)

    def named_in(self, node: Node) -> list[str]:
        """Return the tensors that stand in a part of the tree."""
        found: dict[str, None] = {}

        def resolve(name: str, _: Place) -> np.ndarray[Any, Any]:
            found[name] = None
            return _NOTHING

        Decoder(resolve).decode(node)
        return list(found)

    def _hash(self, source: Source, name: str) -> str:
        scratch = getattr(self._scratch, "buffer", None)
        if scratch is None:
            scratch = self._scratch.buffer = memoryview(bytearray(_SCRATCH_BYTES))
        nbytes = self.manifest.tensors[name].nbytes
        return shards.hash_tensor(source, self._offsets[name], nbytes, scratch)

    def _check(self, names: Iterable[str], read: Callable[[Source, str], str]) -> None:
        """Read tensors in threads, and compare the digests of what was read."""

        def check(file: str, batch: list[str]) -> None:
            with self._named(file), self._directory.source(file) as source:
                for name in batch:
                    with self._named(file, name):
                        if read(source, name) != self.manifest.tensors[name].digest:
                            raise ValueError("its bytes do not match the digest in the manifest")

        _in_threads(check, self._batches(set(names)))

    def _batches(self, names: set[str]) -> list[tuple[str, list[str]]]:
        """Group neighbours in a file: to open it takes as long as to read a small tensor."""
        batches: list[tuple[str, list[str]]] = []
        room = 0
        for name in sorted(names, key=self._order.__getitem__):
            tensor = self.manifest.tensors[name]
            if room <= 0 or batches[-1][0] != tensor.file:
                batches.append((tensor.file, []))
                room = _BATCH_BYTES
            batches[-1][1].append(name)
            room -= tensor.nbytes
        return batches

    @contextlib.contextmanager
    def _named(self, file: str, name: str | None = None) -> Iterator[None]:
        """Turn what goes wrong inside into an error that says where."""
        try:
            yield
        except (OSError, EOFError, ValueError, MemoryError) as error:
            place = f" ({self._place(name)})" if name is not None else ""
            reason = getattr(error, "strerror", None) or error or "no memory is left"
            kind, remedy = self._kind(error)
            raise kind(
                f"{storage.join(self.path, file) if file else self.path}{place}: {reason}. {remedy}"
            ) from error

    def _kind(self, error: Exception) -> tuple[type[CheckpointError], str]:
        """Return what an error says about the checkpoint, and what to do."""
        if self._directory.is_gone():
            return MissingCheckpointError, "It was removed, or never was: look for another"
        if isinstance(error, NotOursError | manifest.OtherVersionError):
            return ForeignCheckpointError, "What is no part of it belongs elsewhere"
        if isinstance(error, OSError) and error.errno in _NOT_OURS:
            return ForeignCheckpointError, "A checkpoint is a directory of regular files"
        if isinstance(error, MemoryError) or (
            isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
        ):
            remedy = "That may pass: see that the disk works, and what this process is allowed"
            return UnreadableCheckpointError, remedy
        return DamagedCheckpointError, "Restore another checkpoint, or a copy of this one"

    def _read_manifest(self) -> bytes:
        try:
            with self._directory.source(manifest.NAME) as source:
                if source.size > manifest.MAX_BYTES:
                    raise ValueError(f"it has {source.size} bytes, more than any manifest")
                buffer = bytearray(source.size)
                shards.read_exactly(source, 0, memoryview(buffer))
        except FileNotFoundError:
            # Without a manifest, the names alone tell the rest of a checkpoint from other things.
            own = all(map(manifest.is_shard, self._directory.names()))
            raise (ValueError if own else NotOursError)(
                "it is missing, so this is no checkpoint; those of a run are its steps"
            ) from None
        return bytes(buffer)

    def _check_tree(self) -> None:
        """Decode the tree once without arrays, and see that it names every tensor."""
        named: set[str] = set()

        def resolve(name: str, path: Place) -> np.ndarray[Any, Any]:
            if name not in self.manifest.tensors:
                raise TreeError(f"{path}: it names the tensor {name!r:.100}, which is not listed")
            named.add(name)
            return _NOTHING

        Decoder(resolve).decode(self.manifest.tree)
        if len(named) != len(self.manifest.tensors):
            raise ValueError("it lists a tensor that is not in the tree")

    def _place(self, name: str) -> str:
        """Return the first path in the tree where a tensor stands."""
        paths: list[Place] = []

        def resolve(found: str, path: Place) -> np.ndarray[Any, Any]:
            if found == name and not paths:
                paths.append(path)
            return _NOTHING

        Decoder(resolve).decode(self.manifest.tree)
        return str(paths[0])

    def _check_listing(self) -> None:
        found = self._directory.names()
        listed = {manifest.NAME, *self.manifest.files}
        for name in sorted(found - listed):
            raise NotOursError(f"{name!r:.100} is there, but the manifest does not list it")
        for name in sorted(listed - found):
            raise ValueError(f"{name!r:.100} is missing")

    def _check_headers(self) -> dict[str, int]:
        """Check the size and header of every shard, and return where each tensor begins."""
        contents: dict[str, dict[str, manifest.Tensor]] = {f: {} for f in self.manifest.files}
        for name, tensor in self.manifest.tensors.items():
            contents[tensor.file][name] = tensor
        offsets: dict[str, int] = {}
        for file, tensors in contents.items():
            with self._named(file), self._directory.source(file) as source:
                head = shards.header({name: (t.dtype, t.shape) for name, t in tensors.items()})
                end = len(head)
                for name, tensor in tensors.items():
                    offsets[name] = end
                    end += tensor.nbytes
                self._check_header(source, self.manifest.files[file], head, end)
        return offsets

    def _check_header(self, source: Source, entry: manifest.File, head: bytes, end: int) -> None:
        size = source.size
        if size != entry.size:
            raise ValueError(f"it has {size} bytes, not {entry.size}")
        found = bytearray(min(size, len(head)))
        shards.read_exactly(source, 0, memoryview(found))
        if size != end or found != head or manifest.digest(head) != entry.header:
            raise ValueError("its header does not match the manifest")


def _in_threads(task: Callable[..., None], calls: list[tuple[Any, ...]]) -> None:
    """Run a task for every call; the first error ends it."""
    workers = min(4, len(calls), os.cpu_count() or 1)
    if workers < 2:
        for call in calls:
            task(*call)
        return
    with ThreadPoolExecutor(workers) as pool:
        futures = []
        # While the interpreter ends, a background save has this thread alone.
        with contextlib.suppress(RuntimeError):
            for call in calls:
                futures.append(pool.submit(task, *call))  # noqa: PERF401 - keeps the first ones
        try:
            for future in futures:
                future.result()
            for call in calls[len(futures) :]:
                task(*call)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
