"""The arrays of a checkpoint one by one, on the mapped files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.storage import locate


class OpenCheckpoint(Mapping[str, np.ndarray[Any, Any]]):
    """The arrays of a checkpoint by name, as :func:`open` returns them."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._tensors = reader.names()
        self._arrays: dict[str, np.ndarray[Any, Any]] = {}
        self._is_closed = False

    def __getitem__(self, name: str) -> np.ndarray[Any, Any]:
        """Return a read-only array; its digest is checked when it is asked for first."""
        if self._is_closed:
            raise ValueError(f"{self._reader.path} is closed: open it again to ask for {name!r}")
        tensor = self._tensors[name]
        if tensor not in self._arrays:
            self._arrays[tensor] = self._reader.mapped(tensor)
        return self._arrays[tensor]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; arrays that were returned stay as they are."""
        self._is_closed = True
        self._arrays.clear()
        self._reader.close()


def open(path: str | os.PathLike[str]) -> OpenCheckpoint:  # noqa: A001 - read as checkpoint.open
    """Open a checkpoint, to read some of its arrays.

    An array takes no memory of its own: its pages are read from the file when they are used.
    Nothing else is read, so what is not asked for is not checked. Nobody may change the files
    while arrays are in use; removing them does no harm.

    Args:
        path: the directory of one checkpoint; or its URL, for fsspec: then an array is read as a
            whole when it is asked for first.

    Returns:
        A mapping of names to read-only NumPy arrays. The name of an array is its path in the
        tree, with ``/`` between the keys.

    Raises:
        CheckpointError: it is no checkpoint, or its manifest is damaged. When an array is asked
            for: it is damaged.
        KeyError: there is no array of that name.
        ValueError: the checkpoint was closed when an array was asked for.

    Example:
        >>> import tempfile
        >>> from lucid_gpu.checkpoint import save
        >>> path = tempfile.mkdtemp() + "/best"
        >>> save(path, {"model": {"h.0.weight": np.ones(2)}, "epoch": 7})
        >>> with open(path) as arrays:
        ...     print(list(arrays), arrays["model/h.0.weight"])
        ['model/h.0.weight'] [1. 1.]
    """
    return OpenCheckpoint(Reader(locate(path)))
