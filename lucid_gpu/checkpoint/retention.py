"""Which steps of a run are kept: only those of which every byte verifies count."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from lucid_gpu.checkpoint import steps
from lucid_gpu.checkpoint.errors import CheckpointError, DamagedCheckpointError

Signature = tuple[tuple[Any, ...], ...]
"""What the system says about the files of a step; another one means that they were changed."""


class Retention:
    """Knows which steps of a run verify, and which may go.

    Args:
        directory: that of the run.
        keep: how many of the newest steps stay.
        keep_every: steps divisible by it stay too.
    """

    def __init__(self, directory: Path, keep: int, keep_every: int | None) -> None:
        self._directory = directory
        self._keep = keep
        self._keep_every = keep_every
        self._verified: dict[int, tuple[Signature, bool]] = {}

    def note(self, step: int, is_valid: bool) -> None:
        """Note that a step was just written, or found damaged."""
        self._verified[step] = (self._signature(step), is_valid)

    def victims(self) -> list[str]:
        """Return what is complete and not kept: only what verifies counts as kept."""
        victims, kept = [], 0
        for step in reversed(steps.in_run(self._directory)):
            if kept < self._keep:
                kept += self._counts(step)
            elif (self._keep_every is None or step % self._keep_every) and self._is_ours(step):
                victims.append(steps.path_of(self._directory, step).name)
        return victims

    def _counts(self, step: int) -> bool:
        """Say whether a step is known to be valid now."""
        try:
            return self.is_valid(step)
        except CheckpointError:
            return False

    def _is_ours(self, step: int) -> bool:
        """Say whether all of a step but the bytes of its arrays is as written."""
        if self._verified.get(step) == (self._signature(step), True):
            return True
        try:
            steps.open_step(self._directory, step).close()
        except CheckpointError:
            return False
        return True

    def is_valid(self, step: int) -> bool:
        """Say whether every byte of a step is as written; False only if it is damaged."""
        signature = self._signature(step)
        known = self._verified.get(step)
        if known is None or known[0] != signature:
            try:
                with steps.open_step(self._directory, step) as reader:
                    reader.verify(reader.manifest.tensors)
                known = signature, True
            except DamagedCheckpointError:
                known = signature, False
            self._verified[step] = known
        return known[1]

    def _signature(self, step: int) -> Signature:
        with (
            contextlib.suppress(OSError),
            os.scandir(steps.path_of(self._directory, step)) as entries,
        ):
            found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
            return tuple(
                (name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
                for name, s in sorted(found)
            )
        return ()
