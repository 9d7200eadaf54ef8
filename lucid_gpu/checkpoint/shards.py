"""Shards: safetensors files, written and read piece by piece, hashed on the way.

``safetensors.serialize_file`` wants a whole shard in host memory and gives no descriptor to
sync, so the file is written here, and the library reads it back in the tests. A header follows
from the manifest to the byte, so a reader compares it instead of parsing it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import xxhash

from lucid_gpu.checkpoint import dtypes
from lucid_gpu.checkpoint.manifest import File, Tensor, digest
from lucid_gpu.checkpoint.storage import Create, Source
from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import Array, is_cupy

Layout: TypeAlias = Mapping[str, tuple[dtypes.DType, tuple[int, ...]]]
"""The dtype and shape of every tensor of one shard, in the order of its bytes."""

Rest: TypeAlias = Callable[[float], None]
"""Called after each piece, with the seconds that writing it took."""

SHARD_BYTES = 512 << 20
"""A shard is closed when it holds this much."""

PIECE_BYTES = 4 << 20
"""Size of one read or write: large enough for a system call, small enough to hash from cache."""


def plan(arrays: Mapping[str, Array]) -> list[list[str]]:
    """Return the names of the arrays of each shard.

    Within a shard, wider dtypes come first, so that every tensor is aligned, as safetensors does.
    """
    shards: list[list[str]] = []
    room = 0
    for name, array in arrays.items():
        if room <= 0:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= array.nbytes
    return [sorted(names, key=lambda name: -_alignment(arrays[name].dtype)) for names in shards]


def header(layout: Layout, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the header of a safetensors file: its length, and JSON padded to 8 bytes."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, (dtype, shape) in layout.items():
        code, stored = dtypes.storage(dtype, shape)
        stop = start + Tensor(dtype, shape, "", "").nbytes
        entries[name] = {"dtype": code, "shape": stored, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def no_rest(_seconds: float) -> None:
    """Go on with the next piece at once."""


def write(
    create: Create, file: str, arrays: Mapping[str, Array], rest: Rest = no_rest
) -> tuple[File, dict[str, Tensor]]:
    """Write one shard as a new file, and return its part of the manifest."""
    layout = {name: (array.dtype, array.shape) for name, array in arrays.items()}
    head = header(layout)
    size, tensors = len(head), {}
    scratch = np.empty(max(map(_piece_size, arrays.values()), default=0), np.uint8)
    with create(file) as put:
        put(head)
        for name, array in arrays.items():
            value = _write_array(put, array, scratch, rest)
            tensors[name] = Tensor(array.dtype, array.shape, file, value)
            size += tensors[name].nbytes
    return File(size, digest(head)), tensors


def as_bytes(array: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of a C-contiguous host array as bytes, without a copy."""
    if array.nbytes == 0:
        return memoryview(b"")
    return array.reshape(-1).view(np.uint8).data


def read_tensor(source: Source, offset: int, target: memoryview) -> str:
    """Read one tensor into ``target``, and return the digest of what was read."""
    hasher = xxhash.xxh3_128()
    for start in range(0, len(target), PIECE_BYTES):
        piece = target[start : start + PIECE_BYTES]
        read_exactly(source, offset + start, piece)
        hasher.update(piece)
    return hasher.hexdigest()


def hash_tensor(source: Source, offset: int, nbytes: int, scratch: memoryview) -> str:
    """Return the digest of one tensor, read piece by piece into a buffer that stays in cache."""
    hasher = xxhash.xxh3_128()
    for start in range(0, nbytes, len(scratch)):
        piece = scratch[: min(len(scratch), nbytes - start)]
        read_exactly(source, offset + start, piece)
        hasher.update(piece)
    return hasher.hexdigest()


def read_exactly(source: Source, offset: int, target: memoryview) -> None:
    """Fill ``target`` from a file.

    Raises:
        EOFError: the file ends before.
    """
    done = 0
    while done < len(target):
        count = source.read(offset + done, target[done:])
        if count == 0:
            raise EOFError("the file ended while it was read")
        done += count


def _alignment(dtype: dtypes.DType) -> int:
    return 1 if dtypes.is_raw(dtype) else dtype.itemsize


def _write_array(
    put: Callable[[Any], None], array: Array, scratch: np.ndarray[Any, Any], rest: Rest
) -> str:
    hasher = xxhash.xxh3_128()
    for piece in _pieces(array, scratch):
        begin = time.perf_counter()
        hasher.update(piece)
        put(piece)
        rest(time.perf_counter() - begin)
    return hasher.hexdigest()


def _pieces(array: Array, scratch: np.ndarray[Any, Any]) -> Iterator[memoryview]:
    """Yield the bytes of an array in C order, which safetensors wants, as pieces.

    Each is a copy, valid until the next one is asked for: what is written is what was hashed, even
    if somebody changes the array meanwhile.
    """
    if is_cupy(array):
        yield from (piece.data for piece in transfer.host_chunks(array))
        return
    if array.nbytes == 0:
        return
    for chunk in _chunks(array, _piece_size(array) // array.itemsize):
        piece = scratch[: chunk.nbytes]
        piece.view(chunk.dtype)[...] = chunk
        yield piece.data


def _piece_size(array: Array) -> int:
    """Return the bytes of a whole number of elements that are written at once."""
    if is_cupy(array) or not array.nbytes:
        return 0
    whole: int = max(1, min(PIECE_BYTES, array.nbytes) // array.itemsize)
    return whole * int(array.itemsize)


def _chunks(array: np.ndarray[Any, Any], count: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the elements in C order, ``count`` at a time, without a copy of the whole."""
    if array.flags.c_contiguous:
        memory = array.reshape(-1).view(np.uint8)
        step = count * array.itemsize
        yield from (memory[start : start + step] for start in range(0, len(memory), step))
        return
    # As opaque elements: the iterator knows no dtypes of other packages.
    opaque: Any = array.view(f"V{array.itemsize}")
    with np.nditer(
        opaque, flags=["external_loop", "buffered"], order="C", buffersize=count
    ) as chunks:
        yield from chunks
