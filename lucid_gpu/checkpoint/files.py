"""Saving and loading one checkpoint."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_gpu.checkpoint import dtypes, durable, manifest, shards, steps
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.restore import restore_into
from lucid_gpu.checkpoint.select import NOTHING, matching, of_node, of_tree
from lucid_gpu.checkpoint.shards import no_rest
from lucid_gpu.checkpoint.storage import Create, Location, creator, locate, publish
from lucid_gpu.checkpoint.tree import Encoder, Node
from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import Array, device_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Save a tree as one checkpoint: the new directory ``path`` appears whole, or not at all.

    When this returns, the checkpoint survives a power cut. Gradients are not saved. An array that
    another thread changes meanwhile is stored as it was piece by piece, some old, some new.

    Args:
        path: the directory to create; missing parents are created too. Or the URL of one in a
            store that fsspec knows, such as ``s3://bucket/run/best``: there is no rename there, so
            the manifest is written last, and nothing else keeps two writers apart.
        tree: dicts (with str or int keys), lists, tuples, sets, None, bool, numbers, str, bytes,
            NumPy and CuPy arrays, NumPy scalars, Parameters, objects with ``state_dict`` and
            ``load_state_dict``, random generators of NumPy and Python, paths, enum members,
            namedtuples, dataclasses, OrderedDicts and defaultdicts, nested at will. An array that
            stands in two places comes back as one; views that overlap, like x and x[:2], come
            back with memory of their own.

    Raises:
        TypeError: the tree holds something else; the text says where. Nothing was written.
        ValueError: the tree is nested too deep, holds itself, or holds so many plain values that
            they belong into arrays. Nothing was written.
        RuntimeError: a current stream records a CUDA graph. Nothing was written.
        CheckpointError: ``path`` exists, or the system could not write. Nothing appeared.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/best"
        >>> save(path, {"w": np.arange(3), "epoch": 7})
        >>> load(path)
        {'w': array([0, 1, 2]), 'epoch': 7}
    """
    place = locate(path)
    encoder = Encoder()
    node = encoder.encode(tree)
    gpu.refuse_capture("save", map(device_of, encoder.arrays.values()))
    check_size(node, encoder.arrays)
    if isinstance(place, str):
        try:
            publish(place, lambda create: _write(create, node, encoder.arrays, None, no_rest))
        except OSError as error:
            raise _not_saved(place, error) from error
        return
    target = Path(os.path.abspath(place))  # noqa: PTH100 - resolve() would follow links
    try:
        durable.make_directories(target.parent)
    except OSError as error:
        raise _not_saved(target, error) from error
    write_checkpoint(target, node, encoder.arrays, step=None)


def load(
    path: str | os.PathLike[str],
    device: str | None = None,
    into: Any | None = None,
    strict: bool = True,
    select: str | Sequence[str] | None = None,
) -> Any:
    """Load one checkpoint, or a part of it, after every byte of that was checked.

    Args:
        path: the directory that was saved, or the directory of a run: then the newest checkpoint
            in it that verifies, without a lock and while a Checkpointer goes on. Damaged ones
            above it are a warning. Or the URL of either, for fsspec.
        device: where arrays and Parameters go: ``"cpu"``, ``"cuda:N"``, or None for the host.
            Arrays of a dtype that CuPy has not, like text and dates, stay on the host.
        into: a tree of the same structure. Its arrays, Parameters and objects are restored in
            place, on whatever device they are; a None in it stands for anything and is answered
            with what was saved, as are plain values.
        strict: False restores what fits ``into``, leaves the rest of it as it is, and warns with
            a list of what that was.
        select: a pattern such as ``"model/**"``, or some: only what matches is read, with all
            below it. ``/`` stands between keys, ``*`` for characters of one, ``**`` for any
            number of keys. What is not selected is left out of dicts, and None in lists and
            tuples, in the tree that is returned as well as in ``into``.

    Returns:
        The tree. With ``into``, objects, namedtuples, dataclasses and enum members come back as
        what they are there; without it as plain data: a state dict, a tuple, a dict of fields, the
        value of the member. A defaultdict comes back as a dict.

    Raises:
        CheckpointError: the checkpoint is damaged, does not fit ``into``, or nothing in it is
            selected. Nothing was changed, unless the disk failed after all had been verified: the
            text says so.
        KeyboardInterrupt: or SystemExit, by a signal handler: nothing was changed; or all of
            ``into`` was, if arrays were being written.
        TypeError: ``select`` is no pattern.
        ValueError: ``device`` is unknown, or given together with ``into``; ``strict`` is False
            without ``into``.
        RuntimeError: a current stream records a CUDA graph. Nothing was changed.
        lucid_gpu.device.DeviceUnavailableError: ``device`` names a GPU that cannot be used.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/best"
        >>> save(path, {"w": np.ones(2), "epoch": 7})
        >>> w = np.zeros(2)
        >>> load(path, into={"w": w, "epoch": None})["epoch"], w.tolist()
        (7, [1.0, 1.0])
        >>> load(path, select="w")
        {'w': array([1., 1.])}
    """
    if device is not None and into is not None:
        raise ValueError("device and into exclude each other: what is in `into` knows its device")
    if not strict and into is None:
        raise ValueError("strict=False says what to do about `into`: give the tree to restore")
    place = "cpu" if device is None else gpu.resolve(device)
    gpu.refuse_capture("load", [place])
    chooses = None if select is None else matching(select)
    skipped: list[str] = []

    def read(reader: Reader) -> Any:
        node, target = reader.manifest.tree, into
        if chooses is not None:
            node, target = of_node(node, chooses), of_tree(into, chooses)
            if node is NOTHING or (into is not None and target is NOTHING):
                where = "the checkpoint" if node is NOTHING else "`into`"
                raise CheckpointError(
                    f"{reader.path}: select={select!r} chooses nothing in {where}"
                )
        if into is None:
            return read_checkpoint(reader, node, place)
        tree, left = restore_into(reader, node, target, strict)
        skipped[:] = left
        return tree

    where = locate(path)
    if steps.is_run(where):
        tree, step, passed = steps.with_newest(where, read)
        for _, reason in passed:
            warnings.warn(f"fell back to step {step}: {reason}", stacklevel=2)
    else:
        with Reader(where) as reader:
            tree = read(reader)
    if skipped:
        listed = "".join(f"\n  - {text}" for text in skipped)
        warnings.warn(f"{path}: these parts were not loaded:{listed}", stacklevel=2)
    return tree


def read_checkpoint(reader: Reader, node: Node, device: str) -> Any:
    """Return a part of the tree of an open checkpoint, with new arrays on a device."""
    names = reader.named_in(node)
    if device == "cpu":
        return reader.decode(reader.load(names), node)
    arrays: dict[str, Array] = {}
    for part in reader.parts(names):
        for name, array in reader.load(part).items():
            fits = dtypes.fits_gpu(reader.manifest.tensors[name].dtype)
            arrays[name] = transfer.copy(array, device) if fits else array
    return reader.decode(arrays, node)


def check_size(node: Node, arrays: Mapping[str, Array]) -> None:
    """Raise ``ValueError`` for a tree whose manifest would be too large to be read back."""
    try:
        manifest.check_size(manifest.canonical(node), arrays)
    except ValueError as error:
        raise ValueError(
            f"tree is too large: {error}: put long lists of numbers into arrays"
        ) from None


def write_checkpoint(
    target: Path,
    node: Node,
    arrays: Mapping[str, Array],
    step: int | None,
    rest: shards.Rest = no_rest,
) -> None:
    """Write an encoded tree durably as the new directory ``target``.

    Raises:
        CheckpointError: ``target`` exists, or the system could not write. Nothing appeared.
    """
    if os.path.lexists(target):
        raise CheckpointError(f"{target} exists: remove it, or save under another name")
    try:
        with durable.open_directory(target.parent) as parent:
            durable.sweep(parent, target.name)
        durable.publish(target, lambda d: _write(creator(d), node, arrays, step, rest))
    except OSError as error:
        raise _not_saved(target, error) from error


def _not_saved(target: Location, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{target} was not saved: {error.strerror or error}: see that the disk has room, works and "
        "may be written to, and save again"
    )


def _write(
    create: Create,
    node: Node,
    arrays: Mapping[str, Array],
    step: int | None,
    rest: shards.Rest,
) -> None:
    files: dict[str, manifest.File] = {}
    tensors: dict[str, manifest.Tensor] = {}
    for number, names in enumerate(shards.plan(arrays)):
        file = f"data-{number:05d}.safetensors"
        own = {name: arrays[name] for name in names}
        files[file], written = shards.write(create, file, own, rest)
        tensors |= written
    raw = manifest.Manifest(step, node, tensors, files).to_bytes()
    with create(manifest.NAME) as put:
        put(raw)
