"""The names of a run's checkpoints."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

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
        raise TypeError(f"step must be an int, not {step!r}")
    if not 0 <= step < 10**12:
        raise ValueError(f"step={step} must be at least 0 and below 10**12")
    return directory / f"step-{step:012d}"


def found_in(directory: Path) -> list[int]:
    """Return the steps that are in a directory, in order, whether or not they are whole."""
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)
