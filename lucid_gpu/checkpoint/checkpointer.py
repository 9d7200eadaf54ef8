"""The checkpoints of one run, in one directory."""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_gpu.checkpoint import durable, files, steps
from lucid_gpu.checkpoint.background import BackgroundWriter, Staging
from lucid_gpu.checkpoint.errors import CheckpointError, DamagedCheckpointError
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.shards import Rest, no_rest
from lucid_gpu.checkpoint.tree import Encoder, Node

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lucid_gpu.device.arrays import Array


class Checkpointer:
    """Saves and restores the steps of a run.

    One writer holds the directory at a time, until ``close``; readers need no lock.

    Args:
        directory: where the checkpoints are; created if missing.
        keep: how many of the newest checkpoints stay.
        keep_every: steps divisible by it stay too; None keeps no more than ``keep``.

    Raises:
        ValueError: ``keep`` or ``keep_every`` is less than 1.
        CheckpointError: another Checkpointer holds the directory, or it cannot be used.

    Example:
        >>> import numpy as np, tempfile
        >>> w = np.zeros(2)
        >>> with Checkpointer(tempfile.mkdtemp(), keep=2) as checkpointer:
        ...     for step in range(1, 5):
        ...         w += 1
        ...         checkpointer.save(step, {"w": w, "step": step})
        ...     checkpointer.steps()
        ...     checkpointer.restore(into={"w": w, "step": None})["step"]
        [3, 4]
        4
    """

    def __init__(
        self, directory: str | os.PathLike[str], keep: int = 3, keep_every: int | None = None
    ) -> None:
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        self.directory = Path(os.path.abspath(directory))  # noqa: PTH100 - keep links
        self._keep = keep
        self._keep_every = keep_every
        self._complete: dict[int, bool] = {}
        self._staging = Staging()
        self._writer = BackgroundWriter()
        self._lock: int | None = _hold(self.directory)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, step: int, tree: Any, block: bool = True) -> None:
        """Save ``tree`` as the checkpoint of ``step``, then remove what is no longer kept.

        Args:
            step: a count below 10**12, greater than that of any valid checkpoint here.
            tree: as for ``lucid_gpu.checkpoint.save``.
            block: False returns once the arrays are copied to host memory, and writes in the
                background, slowly enough to leave the machine to training until something waits
                for it; an error then surfaces at the next ``save``, ``wait`` or ``close``.

        Raises:
            TypeError: the tree holds what a checkpoint cannot, or ``step`` is no int.
            ValueError: ``step`` is out of range, or the tree is nested too deep.
            CheckpointError: a valid checkpoint is as new, or the system could not write, now or
                in the background save before.
        """
        path = self._path(step)
        if self._lock is None:
            raise CheckpointError(f"{self.directory}: this Checkpointer is closed: open another")
        self.wait()
        encoder = Encoder()
        node = encoder.encode(tree)
        self._make_way(path, step)
        if block:
            self._write(path, node, encoder.arrays, step)
            return
        arrays, arrived = self._staging.take(encoder.arrays)

        def finish(rest: Rest) -> None:
            arrived()
            self._write(path, node, arrays, step, rest)

        self._writer.start(finish)

    def restore(self, step: int | None = None, into: Any | None = None) -> Any:
        """Load the newest checkpoint that verifies, or the one of ``step``.

        Args:
            step: None takes the newest, and falls back to an older one, with a warning, where
                it is damaged; a step that is named never falls back.
            into: as for ``lucid_gpu.checkpoint.load``.

        Returns:
            The tree.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or does not fit ``into``.
        """
        self._writer.join()
        if step is not None:
            return self._load(step, into)
        reasons = []
        for newest in reversed(self.steps()):
            try:
                tree = self._load(newest, into)
            except DamagedCheckpointError as error:
                self._complete[newest] = False
                reasons.append(str(error))
                continue
            for reason in reasons:
                warnings.warn(f"fell back to step {newest}: {reason}", stacklevel=2)
            return tree
        damage = "; ".join(reasons)
        raise CheckpointError(f"{self.directory} holds no checkpoint that can be used. {damage}")

    def steps(self) -> list[int]:
        """Return the steps that are here, in order, whether or not they verify."""
        try:
            return steps.found_in(self.directory)
        except OSError as error:
            raise CheckpointError(f"{self.directory} cannot be listed: {error.strerror}") from error

    def wait(self) -> None:
        """Wait for the background save, and raise its error if it had one."""
        self._writer.wait()

    def close(self) -> None:
        """Wait for the background save, raise its error, and release the directory."""
        try:
            self._writer.close()
        finally:
            if self._lock is not None:
                durable.unlock(self._lock)
                self._lock = None

    def _make_way(self, path: Path, step: int) -> None:
        """Refuse a step that would not be the newest; a damaged one of the same number goes."""
        for other in reversed(self.steps()):
            if other < step:
                return
            if self._is_valid(other):
                raise CheckpointError(
                    f"{self.directory} already has a valid checkpoint of step {other}, so step "
                    f"{step} would not be the newest: remove the steps from there on, or save "
                    "into another directory"
                )
            if other == step:
                self._remove([path.name])

    def _write(
        self,
        path: Path,
        node: Node,
        arrays: Mapping[str, Array],
        step: int,
        rest: Rest = no_rest,
    ) -> None:
        files.write_checkpoint(path, node, arrays, step, rest)
        self._complete[step] = True
        self._remove(self._victims(step))

    def _victims(self, saved: int) -> list[str]:
        """Return what is complete and not kept; damaged steps neither count nor go."""
        complete = [step for step in self.steps() if step == saved or self._is_complete(step)]
        return [
            self._path(step).name
            for step in complete[: -self._keep]
            if step != saved and (self._keep_every is None or step % self._keep_every)
        ]

    def _is_complete(self, step: int) -> bool:
        """Say whether all of a step but the bytes of its arrays is as written."""
        if step not in self._complete:
            try:
                self._open(step).close()
                self._complete[step] = True
            except DamagedCheckpointError:
                self._complete[step] = False
        return self._complete[step]

    def _is_valid(self, step: int) -> bool:
        """Say whether every byte of a step is as written."""
        try:
            with self._open(step) as reader:
                reader.verify(reader.manifest.tensors)
        except DamagedCheckpointError as error:
            # A disk that fails to read says nothing about what is on it.
            if isinstance(error.__cause__, OSError):
                raise
            return False
        return True

    def _open(self, step: int) -> Reader:
        reader = Reader(self._path(step))
        if reader.manifest.step != step:
            reader.close()
            raise DamagedCheckpointError(
                f"{reader.path}: its manifest is of step {reader.manifest.step}: rename it back"
            )
        return reader

    def _load(self, step: int, into: Any | None) -> Any:
        with self._open(step) as reader:
            return files.read_checkpoint(reader, "cpu", into)

    def _remove(self, victims: list[str]) -> None:
        assert self._lock is not None
        try:
            durable.retire(self._lock, victims)
        except OSError as error:
            names = ", ".join(victims)
            raise CheckpointError(
                f"{self.directory}: {names} could not be removed: {error.strerror}"
            ) from error

    def _path(self, step: int) -> Path:
        return steps.path_of(self.directory, step)


def _hold(directory: Path) -> int:
    """Lock a directory against other writers, and remove what dead ones left in it."""
    try:
        durable.make_directories(directory)
        with contextlib.ExitStack() as stack:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(durable.close, descriptor)
            locked = durable.lock(descriptor)
            if locked:
                durable.sweep(descriptor)
                stack.pop_all()
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be used for checkpoints: {error.strerror}"
        ) from error
    if not locked:
        raise CheckpointError(
            f"{directory}: another Checkpointer is writing here: close it, use another directory, "
            "or read a checkpoint with lucid_gpu.checkpoint.load"
        )
    return descriptor
