"""What is raised when a checkpoint cannot be written, believed or used."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint cannot be written, is damaged, or does not fit where it should go.

    The text names the file, the place in the tree where there is one, and the remedy.
    """


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is missing, incomplete or not what was written: an older one may do."""
