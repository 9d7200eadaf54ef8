"""A part of a checkpoint as one safetensors file, for other libraries."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_gpu.checkpoint import dtypes, durable, shards, steps
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.lazy import OpenCheckpoint
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.storage import locate

if TYPE_CHECKING:
    from collections.abc import Mapping

HUB = {"format": "pt"}
"""What loaders of model hubs want to find in a file: the framework that its shapes are those of."""


def export_safetensors(
    path: str | os.PathLike[str],
    part: str,
    file: str | os.PathLike[str],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the arrays below one place of a checkpoint as one safetensors file.

    A tensor is called by its path below ``part``, with ``.`` between the keys:
    ``model/h/0/weight`` and ``model/h.0.weight`` both become ``h.0.weight``. An array that stands
    in two places is written twice. Every byte is checked before it is written, and the file
    appears whole or not at all.

    Args:
        path: a checkpoint, or the directory of a run, which stands for its newest.
        part: the path of a dict, a list, an object or an array in the tree; ``""`` is all of it.
        file: the file to write; one that exists is replaced.
        metadata: text for the header; None writes ``{"format": "pt"}``, which model hubs ask for.

    Raises:
        ValueError: ``file`` is the URL of a store.
        CheckpointError: there are no arrays, two would have one name, one has a dtype that
            safetensors has not, the checkpoint is damaged, or the system could not write.

    Example:
        >>> import numpy as np, tempfile
        >>> from lucid_gpu.checkpoint import save
        >>> folder = tempfile.mkdtemp()
        >>> save(folder + "/best", {"model": {"h.0.weight": np.ones(2)}, "epoch": 7})
        >>> export_safetensors(folder + "/best", "model", folder + "/model.safetensors")
    """
    place = locate(file)
    if isinstance(place, str):
        raise ValueError(f"file={file!r} is a URL: give a local file, and upload that")
    target = Path(os.path.abspath(place))  # noqa: PTH100 - resolve() would follow links
    header_text = dict(HUB if metadata is None else metadata)

    def write_from(reader: Reader) -> None:
        arrays = OpenCheckpoint(reader)
        names = _names(reader, list(arrays), part)
        layout = {name: (arrays[place].dtype, arrays[place].shape) for name, place in names.items()}
        head = shards.header(layout, header_text)

        def write(descriptor: int) -> None:
            durable.write_all(descriptor, head)
            for place in names.values():
                durable.write_all(descriptor, shards.as_bytes(arrays[place]))

        durable.make_directories(target.parent)
        durable.publish_file(target, write)

    try:
        if steps.is_run(locate(path)):
            _, step, passed = steps.with_newest(locate(path), write_from)
            for _, reason in passed:
                warnings.warn(f"fell back to step {step}: {reason}", stacklevel=2)
        else:
            with Reader(locate(path)) as reader:
                write_from(reader)
    except OSError as error:
        raise CheckpointError(f"{target} was not written: {error.strerror}") from error


def _names(reader: Reader, places: list[str], part: str) -> dict[str, str]:
    """Return the place of each tensor of the file, in the order of the file."""
    names: dict[str, str] = {}
    tensors = reader.names()
    for place in places:
        if part and place != part and not place.startswith(f"{part}/"):
            continue
        name = (place[len(part) :] or place.rpartition("/")[2]).strip("/").replace("/", ".")
        dtype = reader.manifest.tensors[tensors[place]].dtype
        if dtypes.is_raw(dtype):
            raise CheckpointError(
                f"{reader.path}: {place} is {dtype}, which safetensors has not: convert the array "
                "before it is saved, or export a part without it"
            )
        if name in names:
            raise CheckpointError(
                f"{reader.path}: {names[name]} and {place} would both be called {name}"
            )
        names[name] = place
    if not names:
        raise CheckpointError(
            f"{reader.path}: there is no array below {part!r}; there are {places[:10]}"
        )
    widths = {name: reader.manifest.tensors[tensors[place]].dtype for name, place in names.items()}
    return {name: names[name] for name in sorted(names, key=lambda n: -widths[n].itemsize)}
