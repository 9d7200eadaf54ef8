"""What is raised when a checkpoint cannot be written, believed or used."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint cannot be written, is damaged, or does not fit where it should go.

    The text names the file, the place in the tree where there is one, and the remedy.
    """


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is incomplete or not what was written, for good: an older one may do."""


class MissingCheckpointError(CheckpointError):
    """There is no checkpoint at this path, or it was removed while it was read."""


class ForeignCheckpointError(CheckpointError):
    """What is there was not, or not only, written by this version: it is never deleted."""


class UnreadableCheckpointError(CheckpointError):
    """The system refuses to read now, which says nothing about what is on the disk."""
