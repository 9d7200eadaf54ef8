"""Restoring into parameters, arrays and objects that exist: everything is checked first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lucid_gpu.checkpoint import random_state
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.match import Matcher
from lucid_gpu.checkpoint.place import ROOT, Place
from lucid_gpu.checkpoint.tree import Node, offers
from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import Array, device_of, is_cupy

if TYPE_CHECKING:
    from lucid_gpu.checkpoint.reader import Reader


INTERRUPTIONS = (KeyboardInterrupt, SystemExit)
"""What signal handlers raise, between any two lines."""


def restore_into(
    reader: Reader, node: Node, tree: Any, strict: bool = True
) -> tuple[Any, list[str]]:
    """Restore a node of a checkpoint into ``tree``, in place.

    Args:
        reader: the open checkpoint.
        node: its tree, or a part of that.
        tree: what it is restored into.
        strict: False leaves as it is what does not fit.

    Returns:
        The restored tree, and what did not fit.

    Raises:
        CheckpointError: the checkpoint is damaged or does not fit; nothing was changed.
        RuntimeError: a current stream records a CUDA graph; nothing was changed.
    """
    return _Restore(reader, strict).run(node, tree)


class _Restore:
    def __init__(self, reader: Reader, strict: bool) -> None:
        self._reader = reader
        self._strict = strict
        self._found = Matcher(reader, strict)

    def run(self, node: Node, tree: Any) -> tuple[Any, list[str]]:
        build = self._found.match(node, tree, ROOT)
        targets = (array for arrays in self._found.targets.values() for array in arrays)
        gpu.refuse_capture("load", map(device_of, targets))
        self._found.fresh.update(self._reader.load(sorted(self._found.wanted)))
        self._reader.verify(self._found.targets)
        states = [
            (obj, self._found.decoder.decode(node, path), path)
            for obj, node, path in self._found.objects
        ]
        # What only objects hold is theirs now, to let go of.
        self._found.fresh = {
            name: self._found.fresh[name] for name in self._found.returned & set(self._found.fresh)
        }
        undo = self._load_objects(states)
        interruption = None
        try:
            try:
                self._fill()
            except INTERRUPTIONS as error:
                # All was verified, so what it would leave half restored can be completed.
                interruption = error
                self._fill()
        except BaseException as error:
            undone = undo()
            if not isinstance(error, CheckpointError):
                raise
            raise type(error)(
                f"{error}. It was sound a moment ago, so arrays in `into` may be half restored"
                f"{undone}"
            ) from error
        for parameter, requires_grad, text in self._found.settings:
            parameter.requires_grad = requires_grad
            if text is not None:
                parameter.data = text
        for generator, saved in self._found.generators:
            random_state.give_state(saved, generator)
        if interruption is not None:
            raise interruption
        return build(), self._found.skipped

    def _load_objects(self, states: list[tuple[Any, Any, Place]]) -> Callable[[], str]:
        """Hand every object its state; the returned function takes it all back."""
        before = [(target, _state_to_keep(target), path) for target, _, path in states]
        loaded = 0

        def undo(refusing: Any = None) -> str:
            """Put back what was there, and say what could not be."""
            failures = ""
            for target, state, path in before[:loaded]:
                try:
                    target.load_state_dict(state)
                except Exception as error:  # noqa: BLE001 - the others must be put back
                    if target is refusing:
                        failures += "; it is as its load_state_dict left it"
                    else:
                        failures += f"; {path} could not be put back: {error}"
            return failures

        for target, state, path in states:
            loaded += 1
            try:
                _hand_over(target, state, self._strict)
            except INTERRUPTIONS:
                undo()
                raise
            except Exception as error:
                raise CheckpointError(
                    f"{self._reader.path}: {path}: {type(target).__name__} refused its state: "
                    f"{error}{undo(target)}"
                ) from error
        return undo

    def _fill(self) -> None:
        """Read every array into its place: straight into contiguous host memory."""
        direct: dict[str, Array] = {}
        staged = []
        for name, targets in self._found.targets.items():
            plain = next((target for target in targets if _is_plain(target)), None)
            if plain is not None:
                direct[name] = plain
            elif name not in self._found.fresh:
                staged.append(name)
        self._reader.read(direct)
        for name in self._found.targets:
            self._spread(name, direct.get(name, self._found.fresh.get(name)))
        for part in self._reader.parts(staged):
            for name, source in self._reader.load(part).items():
                self._spread(name, source)

    def _spread(self, name: str, source: Array | None) -> None:
        """Copy what was read of an array into its other places."""
        for target in self._found.targets[name]:
            if source is not None and target is not source:
                transfer.copy_into(target, source)


def _state_to_keep(target: Any) -> Any:
    """Return the state of an object as it is now: without a copy where it replaces its arrays."""
    if hasattr(target, "use_up_state_dict"):
        return target.state_dict(copy=False)
    return target.state_dict()


def _hand_over(target: Any, state: Any, strict: bool) -> None:
    load = getattr(target, "use_up_state_dict", target.load_state_dict)
    options = {"strict": False} if not strict and offers(load, "strict") else {}
    load(state, **options)


def _is_plain(array: Array) -> bool:
    return not is_cupy(array) and array.flags.c_contiguous
