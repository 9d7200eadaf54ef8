"""What the command line says about checkpoints: `inspect`, `verify` and `diff`.

A path is one checkpoint, or the directory of a run, which stands for its newest step.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from lucid_gpu.checkpoint import compare, describe, dtypes, steps
from lucid_gpu.checkpoint.errors import (
    CheckpointError,
    DamagedCheckpointError,
    MissingCheckpointError,
)
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.storage import Location, locate

if TYPE_CHECKING:
    import os


class Report(NamedTuple):
    """What to print, and the exit code of the command."""

    text: str
    exit_code: int


def inspect(path: str | os.PathLike[str], as_json: bool = False) -> Report:
    """Describe a checkpoint: its tree with dtypes, shapes, sizes, groups and hyperparameters.

    The digests of the arrays are not checked: see ``verify``.

    Args:
        path: a checkpoint, or the directory of a run.
        as_json: for programs: ``path``, ``step``, ``nbytes``, ``arrays`` (path in the tree →
            ``dtype``, ``shape``, ``nbytes``, ``file``, ``digest``), and the ``tree`` as the
            format has it.

    Returns:
        The description and 0, or the reason why there is none and 1.

    Example:
        >>> import numpy as np, tempfile
        >>> from lucid_gpu.checkpoint import save
        >>> path = tempfile.mkdtemp() + "/best"
        >>> save(path, {"w": np.ones((2, 3), np.float32), "lr": 0.1})
        >>> print(inspect(path).text)  # doctest: +ELLIPSIS
        /.../best: 1 array in 1 file, 24 B
        tree:
          w: float32 [2, 3] 24 B
          lr: 0.1
    """
    try:
        with _open_newest(locate(path)) as reader:
            if as_json:
                return Report(json.dumps(_facts(reader), indent=2), 0)
            lines = [_summary(reader), *describe.tree(reader.manifest)]
    except CheckpointError as error:
        return Report(str(error), 1)
    return Report("\n".join(lines), 0)


def verify(path: str | os.PathLike[str]) -> Report:
    """Check every digest of a checkpoint, or of every step of a run.

    Args:
        path: a checkpoint, or the directory of a run.

    Returns:
        One line for each checkpoint, and 0 if all are as they were written, else 1.

    Example:
        >>> import tempfile
        >>> verify(tempfile.mkdtemp()).exit_code
        1
    """
    directory = locate(path)
    lines: list[str] = []
    exit_code = 0
    gone: set[Location] = set()
    while not lines:
        found = _steps(directory)
        for checkpoint in [steps.path_of(directory, step) for step in found] or [directory]:
            try:
                with Reader(checkpoint) as reader:
                    reader.verify(reader.manifest.tensors)
                    lines.append(f"ok: {_summary(reader)}")
            except CheckpointError as error:
                # A writer may remove old steps at any time, once there are newer ones.
                if found and isinstance(error, MissingCheckpointError) and checkpoint not in gone:
                    gone.add(checkpoint)
                    continue
                lines.append(f"{_verdict(error)}: {error}")
                exit_code = 1
    return Report("\n".join(lines), exit_code)


def _verdict(error: CheckpointError) -> str:
    return "DAMAGED" if isinstance(error, DamagedCheckpointError) else "NOT VERIFIED"


def diff(before: str | os.PathLike[str], after: str | os.PathLike[str]) -> Report:
    """Say what changed between two checkpoints.

    Args:
        before: a checkpoint, or the directory of a run.
        after: another.

    Returns:
        One line for each difference, and 0 if there is none, 1 if there are some, 2 if one of
        the two cannot be read.

    Example:
        >>> import numpy as np, tempfile
        >>> from lucid_gpu.checkpoint import save
        >>> path = tempfile.mkdtemp()
        >>> save(path + "/a", {"w": np.zeros(4), "epoch": 1})
        >>> save(path + "/b", {"w": np.array([0.0, 0.0, 0.5, 0.0]), "epoch": 2})
        >>> print(diff(path + "/a", path + "/b").text)
        tree['w']: 1 of 4 elements differ, by 0.5 at most
        tree['epoch']: 1 became 2
    """
    try:
        with _open_newest(locate(before)) as old, _open_newest(locate(after)) as new:
            lines = list(compare.differences(old, new))
    except CheckpointError as error:
        return Report(str(error), 2)
    return Report("\n".join(lines) or "no difference", 1 if lines else 0)


def _summary(reader: Reader) -> str:
    content = reader.manifest
    arrays, shards = len(content.tensors), len(content.files)
    nbytes = sum(entry.nbytes for entry in content.tensors.values())
    step = "" if content.step is None else f"step {content.step}, "
    return (
        f"{reader.path}: {step}{arrays} array{'s' * (arrays != 1)} in "
        f"{shards} file{'s' * (shards != 1)}, {describe.size(nbytes)}"
    )


def _facts(reader: Reader) -> dict[str, Any]:
    content = reader.manifest
    arrays = {
        name: {
            "dtype": dtypes.to_json(content.tensors[tensor].dtype),
            "shape": content.tensors[tensor].shape,
            "nbytes": content.tensors[tensor].nbytes,
            "file": content.tensors[tensor].file,
            "digest": content.tensors[tensor].digest,
        }
        for name, tensor in reader.names().items()
    }
    return {
        "path": str(reader.path),
        "step": content.step,
        "nbytes": sum(entry.nbytes for entry in content.tensors.values()),
        "arrays": arrays,
        "tree": content.tree,
    }


def _open_newest(path: Location) -> Reader:
    gone = None
    while True:
        found = _steps(path)
        try:
            return Reader(steps.path_of(path, found[-1]) if found else path)
        except MissingCheckpointError:
            # A writer may have removed it; then there is a newer one.
            if not found or found[-1] == gone:
                raise
            gone = found[-1]


def _steps(path: Location) -> list[int]:
    """Return the steps of a run; none for a path that is a checkpoint itself, or nothing."""
    return steps.found_in(path) if steps.is_run(path) else []
