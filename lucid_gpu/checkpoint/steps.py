"""The checkpoints of a run: their names, and which are there."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from lucid_gpu.checkpoint import storage
from lucid_gpu.checkpoint.errors import (
    CheckpointError,
    DamagedCheckpointError,
    ForeignCheckpointError,
    MissingCheckpointError,
)
from lucid_gpu.checkpoint.place import shown
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.storage import L, Location, join, locate

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_NAME = re.compile(r"step-([0-9]{12})")


def path_of(directory: L, step: int) -> L:
    """Return the path of a step: twelve digits, so that names sort as numbers do.

    Raises:
        TypeError: ``step`` is no int.
        ValueError: ``step`` is negative, or has more than twelve digits.
    """
    if type(step) is not int:
        raise TypeError(f"step must be an int, not {shown(step)}")
    if not 0 <= step < 10**12:
        raise ValueError(f"step={shown(step)} must be at least 0 and below 10**12")
    return join(directory, f"step-{step:012d}")


def is_run(path: Location) -> bool:
    """Say whether a path is the directory of a run: no checkpoint itself, but it holds steps."""
    try:
        return not storage.holds_manifest(path) and bool(found_in(path))
    except OSError:
        return False


def found_in(directory: Location) -> list[int]:
    """Return the steps that are in a directory, in order, whether or not they are whole."""
    names = storage.subdirectories(directory)
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def in_run(directory: Location) -> list[int]:
    """Return the steps that are in the directory of a run, as ``found_in`` does.

    Raises:
        CheckpointError: it cannot be listed.
    """
    try:
        return found_in(directory)
    except OSError as error:
        raise CheckpointError(f"{directory} cannot be listed: {error.strerror or error}") from error


def open_step(directory: Location, step: int) -> Reader:
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


class Passed(NamedTuple):
    """A damaged step that a newest one was looked for below."""

    step: int
    reason: str


def with_newest(directory: Location, use: Callable[[Reader], T]) -> tuple[T, int, list[Passed]]:
    """Call ``use`` with the newest step of a run that neither it nor opening finds damaged.

    A writer may go on meanwhile: when it removes the step at hand, there is a newer one.

    Returns:
        What ``use`` returned, the step, and the damaged ones above it.

    Raises:
        CheckpointError: there is no such step, or one cannot be read now or is not ours.
    """
    gone: set[int] = set()
    while True:
        passed: list[Passed] = []
        for step in reversed(in_run(directory)):
            try:
                with open_step(directory, step) as reader:
                    return use(reader), step, passed
            except DamagedCheckpointError as error:
                passed.append(Passed(step, str(error)))
            except MissingCheckpointError as error:
                if step not in gone:
                    gone.add(step)
                    break
                passed.append(Passed(step, str(error)))
        else:
            reasons = "; ".join(reason for _, reason in passed)
            raise NoCheckpointError(
                f"{directory} holds no checkpoint that can be used. {reasons}".rstrip(), passed
            )


class NoCheckpointError(CheckpointError):
    """A run holds no checkpoint that verifies; ``passed`` are the damaged ones."""

    def __init__(self, text: str, passed: list[Passed]) -> None:
        super().__init__(text)
        self.passed = passed


def latest(run: str | os.PathLike[str]) -> Location:
    """Return the path of the newest checkpoint of a run of which every byte verifies.

    It needs no lock, so an evaluation may ask while a Checkpointer writes. That may remove the
    checkpoint before it is loaded: ``load(run)`` has no such gap.

    Args:
        run: the directory of a Checkpointer, or the URL of a directory with steps, for fsspec.

    Returns:
        A path, or a URL.

    Raises:
        CheckpointError: there is none, or one cannot be read now or is of a newer version.

    Example:
        >>> import tempfile
        >>> from lucid_gpu.checkpoint import Checkpointer
        >>> run = tempfile.mkdtemp()
        >>> with Checkpointer(run) as checkpointer:
        ...     checkpointer.save(7, {"epoch": 1})
        >>> latest(run).name
        'step-000000000007'
    """
    directory = locate(run)
    _, step, _ = with_newest(directory, lambda reader: reader.verify(reader.manifest.tensors))
    return path_of(directory, step)
