"""The checkpoints of one run, in one directory."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_gpu.checkpoint import durable, files, steps
from lucid_gpu.checkpoint.background import BackgroundWriter, Staging
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.restore import restore_into
from lucid_gpu.checkpoint.retention import Retention
from lucid_gpu.checkpoint.shards import Rest, no_rest
from lucid_gpu.checkpoint.signals import StopRequests
from lucid_gpu.checkpoint.storage import locate
from lucid_gpu.checkpoint.tree import Encoder, Node
from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import device_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lucid_gpu.checkpoint.reader import Reader
    from lucid_gpu.device.arrays import Array


class Checkpointer:
    """Saves and restores the steps of a run.

    One writer holds the directory at a time, until ``close``; readers need no lock. Threads may
    share it. A forked process cannot save with it: it opens its own, once this one is closed.

    Args:
        directory: where the checkpoints are; created if missing.
        keep: how many of the newest checkpoints stay.
        keep_every: steps divisible by it stay too; None keeps no more than ``keep``.
        save_on_signal: signals such as ``signal.SIGTERM``, which schedulers send to a job that
            they are about to end. The first that arrives until ``close`` is only noted, in
            ``interrupted_by``: the training loop looks there after each step, saves and stops.
            Another one takes its usual effect.

    Raises:
        TypeError: ``save_on_signal`` is no sequence of signals, or ``keep`` or ``keep_every`` no
            whole number.
        ValueError: ``keep`` or ``keep_every`` is less than 1; ``directory`` is a URL;
            ``save_on_signal`` names what cannot be caught, or this is not the main thread, which
            alone may catch signals.
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

        A job that may be preempted:

        >>> import signal
        >>> run = tempfile.mkdtemp()
        >>> with Checkpointer(run, save_on_signal=[signal.SIGTERM]) as checkpointer:
        ...     for step in range(1, 1000):
        ...         if step == 5:
        ...             signal.raise_signal(signal.SIGTERM)
        ...         if step % 100 == 0 or checkpointer.interrupted_by:
        ...             checkpointer.save(step, {"w": w}, block=False)
        ...         if checkpointer.interrupted_by:
        ...             break
        >>> checkpointer.steps(), checkpointer.interrupted_by.name
        ([5], 'SIGTERM')
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep: int = 3,
        keep_every: int | None = None,
        save_on_signal: Sequence[int] = (),
    ) -> None:
        for name, value in (("keep", keep), ("keep_every", keep_every)):
            if value is not None and not hasattr(value, "__index__"):
                raise TypeError(f"{name}={value!r} must be a whole number")
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")
        place = locate(directory)
        if isinstance(place, str):
            raise ValueError(
                f"directory={directory!r} is the URL of a store, which has no locks and renames: "
                "give a local directory, and upload its steps"
            )
        self.directory = Path(os.path.abspath(place))  # noqa: PTH100 - keep links
        self._retention = Retention(self.directory, keep, keep_every)
        self._staging = Staging()
        self._writer = BackgroundWriter()
        self._why_closed = ""
        self._notes: list[str] = []
        self._mutex = threading.RLock()
        self._is_busy = False
        self._requests = StopRequests(save_on_signal)
        try:
            self._lock: int | None = _hold(self.directory)
        except BaseException:
            self._requests.restore()
            raise
        _living.add(self)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def interrupted_by(self) -> signal.Signals | None:
        """The signal of ``save_on_signal`` that arrived; None as long as none did."""
        return self._requests.received

    def save(self, step: int, tree: Any, block: bool = True) -> None:
        """Save ``tree`` as the checkpoint of ``step``, then remove what is no longer kept.

        Once the checkpoint is there, the save has succeeded: old steps that cannot be removed are
        a warning, and the next save tries again.

        Args:
            step: a count below 10**12, greater than that of any valid checkpoint here.
            tree: as for ``lucid_gpu.checkpoint.save``.
            block: False returns once the arrays are copied to host memory, and writes in the
                background, slowly enough to leave the machine to training until something waits
                for it; an error then surfaces at the next ``save``, ``wait`` or ``close``.

        Raises:
            TypeError: the tree holds what a checkpoint cannot, or ``step`` is no int.
            ValueError: ``step`` is out of range, or the tree is too large or nested too deep.
            RuntimeError: a current stream records a CUDA graph. Nothing was written.
            CheckpointError: a valid checkpoint is as new, or the system could not write, now or
                in the background save before.
        """
        path = self._path(step)
        with self._exclusive("save"):
            if self._lock is None:
                raise CheckpointError(f"{self.directory}: {self._why_closed}: open another")
            self._writer.wait()
            encoder = Encoder()
            node = encoder.encode(tree)
            gpu.refuse_capture("save", map(device_of, encoder.arrays.values()))
            files.check_size(node, encoder.arrays)
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
            CheckpointError: there is no such checkpoint, it is damaged, does not fit ``into``,
                cannot be read now, or was written by a newer version: the last two say nothing
                against it, so they never fall back.
            RuntimeError: a current stream records a CUDA graph. Nothing was changed.
        """
        with self._exclusive("restore"):
            self._writer.join()
            if step is not None:
                with steps.open_step(self.directory, step) as reader:
                    return _read(reader, into)
            try:
                tree, newest, passed = steps.with_newest(
                    self.directory, lambda reader: _read(reader, into)
                )
            except steps.NoCheckpointError as error:
                self._note_damage(error.passed)
                raise
            self._note_damage(passed)
            self._notes += [f"fell back to step {newest}: {reason}" for _, reason in passed]
            return tree

    def _note_damage(self, passed: list[steps.Passed]) -> None:
        for step, _ in passed:
            self._retention.note(step, is_valid=False)

    def steps(self) -> list[int]:
        """Return the steps that are here, in order, whether or not they verify."""
        return steps.in_run(self.directory)

    def wait(self) -> None:
        """Wait for the background save, and raise its error if it had one."""
        with self._exclusive("wait"):
            self._writer.wait()

    def close(self) -> None:
        """Wait for the background save, raise its error, and release the directory."""
        with self._exclusive("close"):
            try:
                self._writer.close()
            finally:
                # An interrupted wait leaves a writer behind, which needs the lock.
                if self._lock is not None and not self._writer.is_writing:
                    durable.release(self._lock)
                    self._lock = None
                    self._requests.restore()
                    self._why_closed = "this Checkpointer is closed"

    @contextlib.contextmanager
    def _exclusive(self, method: str) -> Iterator[None]:
        """Let one thread in at a time; warn of what happened when it has left without an error."""
        with self._mutex:
            if self._is_busy:
                raise CheckpointError(
                    f"{self.directory}: {method} was called from within another method of the "
                    "Checkpointer, by a signal handler or a state_dict: call it between two steps"
                )
            self._is_busy = True
            try:
                yield
            finally:
                self._is_busy = False
            notes, self._notes = self._notes, []
        for note in notes:
            warnings.warn(note, stacklevel=4)

    def _disown(self) -> None:
        """Leave to the parent process what is its own: its save, its thread, its lock."""
        self._mutex = threading.RLock()
        self._is_busy = False
        self._writer.forget()
        self._requests.restore()
        self._lock = None
        self._why_closed = "this Checkpointer belongs to the process that forked this one"

    def _make_way(self, path: Path, step: int) -> None:
        """Refuse a step that would not be the newest; a damaged one of the same number goes."""
        for other in reversed(self.steps()):
            if other < step:
                return
            if self._retention.is_valid(other):
                raise CheckpointError(
                    f"{self.directory} already has a valid checkpoint of step {other}, so step "
                    f"{step} would not be the newest: remove the steps from there on, or save "
                    "into another directory"
                )
            if other == step:
                self._remove(path.name)

    def _write(
        self,
        path: Path,
        node: Node,
        arrays: Mapping[str, Array],
        step: int,
        rest: Rest = no_rest,
    ) -> None:
        files.write_checkpoint(path, node, arrays, step, rest)
        self._retention.note(step, is_valid=True)
        assert self._lock is not None
        try:
            durable.sweep(self._lock)
            durable.retire(self._lock, self._retention.victims())
        except Exception as error:  # noqa: BLE001 - whatever it is, the step was saved
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self._notes.append(
                f"step {step} was saved, but older ones could not be removed: {reason}; the next "
                "save tries again"
            )

    def _remove(self, name: str) -> None:
        assert self._lock is not None
        try:
            durable.retire(self._lock, [name])
        except OSError as error:
            raise CheckpointError(
                f"{self.directory}: the damaged {name} could not be removed: {error.strerror}"
            ) from error

    def _path(self, step: int) -> Path:
        return steps.path_of(self.directory, step)


def _read(reader: Reader, into: Any | None) -> Any:
    node = reader.manifest.tree
    if into is None:
        return files.read_checkpoint(reader, node, "cpu")
    return restore_into(reader, node, into)[0]


_living: weakref.WeakSet[Checkpointer] = weakref.WeakSet()


def _disown_all() -> None:
    for checkpointer in list(_living):
        checkpointer._disown()  # noqa: SLF001 - a part of the class, which the system calls


os.register_at_fork(after_in_child=_disown_all)


def _hold(directory: Path) -> int:
    """Lock a directory against other writers, and remove what dead ones left in it."""
    try:
        durable.make_directories(directory)
        with contextlib.ExitStack() as stack:
            lock = durable.hold(directory)
            if lock is not None:
                stack.callback(durable.release, lock)
                durable.sweep(lock)
                stack.pop_all()
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be used for checkpoints: {error.strerror}"
        ) from error
    if lock is None:
        raise CheckpointError(
            f"{directory}: another Checkpointer is writing here: close it, use another directory, "
            "or read a checkpoint with lucid_gpu.checkpoint.load"
        )
    return lock
