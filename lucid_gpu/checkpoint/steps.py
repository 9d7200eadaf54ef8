"""The checkpoints of a run: their names, and which are there."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from lucid_gpu.checkpoint.errors import CheckpointError, ForeignCheckpointError
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.tree import shown

if TYPE_CHECKING:
    from pathlib import Path

_NAME = re.compile(r"step-([0-9]{12})")


def path_of(directory: Path, step: int) -> Path:
    """Return the path of a step: twelve digits, so that names sort as numbers do.

    Raises:
        TypeError: ``step`` is no int.
        ValueError: ``step`` is negative, or has more than twelve digits.
    """
    if type(step) is not int:
        raise TypeError(f"step must be an int, not {shown(step)}")
    if not 0 <= step < 10**12:
        raise ValueError(f"step={shown(step)} must be at least 0 and below 10**12")
    return directory / f"step-{step:012d}"


def found_in(directory: Path) -> list[int]:
    """Return the steps that are in a directory, in order, whether or not they are whole."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def in_run(directory: Path) -> list[int]:
    """Return the steps that are in the directory of a run, as ``found_in`` does.

    Raises:
        CheckpointError: it cannot be listed.
    """
    try:
        return found_in(directory)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be listed: {error.strerror}") from error


def open_step(directory: Path, step: int) -> Reader:
    """Open the checkpoint of a step.

    Raises:
        CheckpointError: it cannot be opened, or it is another step under this one's name.
    """
    reader = Reader(path_of(directory, step))
    if reader.manifest.step != step:
        reader.close()
        raise ForeignCheckpointError(
            f"{reader.path}: its manifest is of step {reader.manifest.step}: rename it back"
        )
    return reader
