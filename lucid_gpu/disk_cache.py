"""Compiled code that later processes find on disk.

In ``LUCID_GPU_CACHE_DIR``, else in ``lucid_gpu`` below ``XDG_CACHE_HOME`` (``~/.cache``). The
folder may be deleted at any time. One that cannot be read or written is no error: code is then
compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

LAYOUT = 1
"""Of the entries; counted up when their files change."""


class Entry(NamedTuple):
    """A file of compiled code, and what is to be known of it."""

    path: Path
    notes: dict[str, str]


def directory() -> Path | None:
    """Return the folder of the cache, which need not exist; None where the user has no home.

    Example:
        >>> os.environ["LUCID_GPU_CACHE_DIR"] = "/tmp/kernels"
        >>> str(directory())
        '/tmp/kernels'
        >>> del os.environ["LUCID_GPU_CACHE_DIR"]
    """
    if own := os.environ.get("LUCID_GPU_CACHE_DIR"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base, "lucid_gpu")
    try:
        return Path.home() / ".cache" / "lucid_gpu"
    except RuntimeError:
        return None


def is_writable() -> bool:
    """Say whether entries can be kept, as far as can be told without writing one."""
    folder = directory()
    if folder is None:
        return False
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def key(*parts: object) -> str:
    """Return the name of an entry: a digest of all that its code depends on.

    Args:
        parts: strings, numbers, and tuples of them.

    Example:
        >>> key("text", ("-O3",)) == key("text", ("-O3",)) != key("text", ("-O2",))
        True
    """
    return hashlib.sha256(repr((LAYOUT, *parts)).encode()).hexdigest()[:40]


def find(name: str, suffix: str) -> Entry | None:
    """Return an entry, or None if there is none or it is damaged.

    Args:
        name: a :func:`key`.
        suffix: of the file, ``".cubin"`` for example.
    """
    folder = directory()
    if folder is None:
        return None
    path = folder / f"{name}{suffix}"
    try:
        record = _json().loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if record["sha256"] == _digest(path.read_bytes()):
            return Entry(path, {str(k): str(v) for k, v in record["notes"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        pass  # not there, or not what keep() writes
    return None


def keep(name: str, suffix: str, content: bytes, notes: Mapping[str, str]) -> Entry | None:
    """Write an entry and return it; None if it cannot be written.

    Processes may write the same entry at once: each file appears whole, and a reader that sees
    files of two writers finds them damaged unless they are equal.

    Args:
        name: a :func:`key`.
        suffix: of the file.
        content: of the file.
        notes: what :func:`find` is to return beside it.
    """
    folder = directory()
    if folder is None:
        return None
    record = _json().dumps({"sha256": _digest(content), "notes": dict(notes)}).encode()
    path = folder / f"{name}{suffix}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, content)
        _write(folder / f"{name}.json", record)
    except OSError:
        return None
    return Entry(path, dict(notes))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Have a file appear whole or not at all."""
    handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(fresh).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(fresh).unlink()
        raise


def _json() -> Any:
    """Return the module, which importing the package need not wait for."""
    return importlib.import_module("json")
