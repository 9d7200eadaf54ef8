"""The manifest: what a checkpoint holds, and the digests by which it is believed."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import TYPE_CHECKING, Any

import xxhash

from lucid_gpu.checkpoint import dtypes

if TYPE_CHECKING:
    from collections.abc import Collection

FORMAT = "lucid_gpu.checkpoint"
VERSION = (1, 1)
NAME = "manifest.json"

MAX_BYTES = 1 << 28
MAX_COLLECTIONS = 1 << 22
"""More than any tree of sense: a file of empty lists takes 50 times its size in memory."""

_ENTRY_BYTES = 200
_CHARACTER_BYTES = 6
"""The longest that JSON makes of one."""

_SHARD = re.compile(r"data-[0-9]{5}\.safetensors")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_TOP = ("format", "version", "step", "tree", "tensors", "files")


class OtherVersionError(ValueError):
    """A manifest of another major version, of which nothing else is known."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One array: its logical type, the file that holds its bytes, and their digest."""

    dtype: dtypes.DType
    shape: tuple[int, ...]
    file: str
    digest: str

    @property
    def nbytes(self) -> int:
        """The number of bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class File:
    """One shard: its size and the digest of its header."""

    size: int
    header: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Everything but the bytes of the arrays; tensors stand in the order of their files."""

    step: int | None
    tree: Any
    tensors: dict[str, Tensor]
    files: dict[str, File]

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON, with the digest of itself."""
        body = {
            "format": FORMAT,
            "version": list(VERSION),
            "step": self.step,
            "tree": self.tree,
            "tensors": {
                name: {
                    "dtype": dtypes.to_json(tensor.dtype),
                    "shape": list(tensor.shape),
                    "file": tensor.file,
                    "digest": tensor.digest,
                }
                for name, tensor in self.tensors.items()
            },
            "files": {name: dataclasses.asdict(file) for name, file in self.files.items()},
        }
        return canonical(body | {"digest": digest(canonical(body))})


def from_bytes(raw: bytes) -> Manifest:
    """Return the manifest that was read from a file.

    Raises:
        ValueError: it is not a manifest, of an unknown version, or not as it was written.
    """
    check_size(raw)
    try:
        body = json.loads(raw, object_pairs_hook=_unique)
        found = canonical(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON: {error}") from None
    if type(body) is not dict or body.get("format") != FORMAT:
        raise ValueError(f"it is not a manifest of format {FORMAT!r}")
    claimed = body.pop("digest", None)
    minor = _check_version(body, claimed)
    if found != raw or claimed != digest(canonical(body)):
        raise ValueError("its content does not match its own digest")
    if not set(_TOP) <= set(body) or (minor <= VERSION[1] and len(body) != len(_TOP)):
        raise ValueError(f"its fields are {sorted(body)}, not {sorted(_TOP)}")
    step = body["step"]
    if step is not None and not _is_count(step):
        raise ValueError(f"step {step!r:.100} is not a count")
    files = {name: _file(name, entry) for name, entry in _items(body, "files")}
    tensors = {name: _tensor(name, entry, files) for name, entry in _items(body, "tensors")}
    if set(files) != {tensor.file for tensor in tensors.values()}:
        raise ValueError("it lists a file that holds no tensor")
    return Manifest(step, body["tree"], tensors, files)


def check_size(raw: bytes, tensors: Collection[str] = ()) -> None:
    """Raise ``ValueError`` for a manifest that no memory should be given to.

    Args:
        raw: the manifest, or its tree alone.
        tensors: the names of those whose entries are to come on top.
    """
    collections = raw.count(b"[") + raw.count(b"{")
    entries = sum(_ENTRY_BYTES + _CHARACTER_BYTES * len(name) for name in tensors)
    for what, count, most in (
        ("bytes", len(raw) + entries, MAX_BYTES),
        ("lists and dicts", collections + 2 * len(tensors), MAX_COLLECTIONS),
    ):
        if count > most:
            raise ValueError(f"it has {count} {what}, and {most} are the most that is read back")


def is_shard(name: str) -> bool:
    """Say whether a file is named as a shard."""
    return _SHARD.fullmatch(name) is not None


def digest(data: Any) -> str:
    """Return the xxh3-128 digest of ``data``, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(data)


def canonical(value: Any) -> bytes:
    """Return the one form in which JSON is written here."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError(f"duplicate key among {[key for key, _ in pairs]!r:.100}")
    return dict(pairs)


def _check_version(body: dict[str, Any], claimed: Any) -> int:
    version = body.get("version")
    if type(version) is not list or len(version) != 2 or not all(map(_is_count, version)):
        raise ValueError(f"version {version!r:.100} is not [major, minor]")
    if version[0] == VERSION[0]:
        return int(version[1])
    if any(
        claimed == digest(canonical(body | {"version": [VERSION[0], minor]}))
        for minor in range(VERSION[1] + 1)
    ):
        raise ValueError(f"its version was altered to {version[0]}.{version[1]}")
    raise OtherVersionError(
        f"it has format version {version[0]}.{version[1]}, and this lucid_gpu reads "
        f"{VERSION[0]}.x: use the lucid_gpu that wrote it"
    )


def _items(body: dict[str, Any], field: str) -> list[tuple[str, Any]]:
    entries = body[field]
    if type(entries) is not dict or not all(type(entry) is dict for entry in entries.values()):
        raise ValueError(f"{field!r} is not a table")
    return list(entries.items())


def _file(name: str, entry: dict[str, Any]) -> File:
    size, header = entry.get("size"), entry.get("header")
    if not _SHARD.fullmatch(name) or not _is_count(size) or not _is_digest(header):
        raise ValueError(f"malformed file entry {name!r:.100}: {entry!r:.200}")
    return File(size, header)  # type: ignore[arg-type]


def _tensor(name: str, entry: dict[str, Any], files: dict[str, File]) -> Tensor:
    shape, file, value = entry.get("shape"), entry.get("file"), entry.get("digest")
    try:
        dtype = dtypes.from_json(entry.get("dtype"))
    except ValueError as error:
        raise ValueError(f"tensor {name!r:.100}: {error}") from None
    if type(shape) is not list or len(shape) > 64 or not all(map(_is_count, shape)):
        raise ValueError(f"tensor {name!r:.100} has the impossible shape {shape!r:.100}")
    if math.prod(extent for extent in shape if extent) * max(dtype.itemsize, 1) >= 2**63:
        raise ValueError(f"tensor {name!r:.100} has the overflowing shape {shape!r:.100}")
    if type(file) is not str or file not in files or not _is_digest(value):
        raise ValueError(f"malformed tensor entry {name!r:.100}: {entry!r:.200}")
    return Tensor(dtype, tuple(shape), file, value)  # type: ignore[arg-type]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_digest(value: Any) -> bool:
    return type(value) is str and _DIGEST.fullmatch(value) is not None
