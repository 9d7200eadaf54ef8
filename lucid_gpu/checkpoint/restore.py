"""Restoring into parameters, arrays and objects that exist: everything is checked first."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from enum import Enum, Flag
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np

from lucid_gpu.checkpoint import random_state
from lucid_gpu.checkpoint.decode import Decoder
from lucid_gpu.checkpoint.errors import CheckpointError
from lucid_gpu.checkpoint.place import ROOT, Place, printable, shown
from lucid_gpu.checkpoint.tree import Node, fields_of, is_record, is_stateful, offers, split
from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import Array, address, device_of, is_array, is_cupy
from lucid_gpu.parameter import Parameter

if TYPE_CHECKING:
    from lucid_gpu.checkpoint.reader import Reader

Build = Callable[[], Any]
"""Returns the restored form of one place in the tree, once everything was restored."""


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
    """
    restore = _Restore(reader, strict)
    return restore.run(node, tree), restore.skipped


class _MisfitError(CheckpointError):
    """A part of a checkpoint does not fit where it should go."""


class _Restore:
    def __init__(self, reader: Reader, strict: bool) -> None:
        self.skipped: list[str] = []
        self._reader = reader
        self._strict = strict
        self._targets: dict[str, list[Array]] = {}
        self._sources: dict[tuple[Any, ...], tuple[str, Place]] = {}
        self._objects: list[tuple[Any, Node, Place]] = []
        self._settings: list[tuple[Parameter, bool, str | None]] = []
        self._generators: list[tuple[Any, Any]] = []
        self._wanted: set[str] = set()
        self._returned: set[str] = set()
        self._fresh: dict[str, Array] = {}
        self._decoder = Decoder(lambda name, _: self._fresh[name])

    def run(self, node: Node, tree: Any) -> Any:
        build = self._match(node, tree, ROOT)
        self._fresh.update(self._reader.load(sorted(self._wanted)))
        self._reader.verify(self._targets)
        states = [
            (obj, self._decoder.decode(node, path), path) for obj, node, path in self._objects
        ]
        # What only objects hold is theirs now, to let go of.
        self._fresh = {name: self._fresh[name] for name in self._returned & set(self._fresh)}
        undo = self._load_objects(states)
        try:
            self._fill()
        except BaseException as error:
            undone = undo()
            if not isinstance(error, CheckpointError):
                raise
            raise type(error)(
                f"{error}. It was sound a moment ago, so arrays in `into` may be half restored"
                f"{undone}"
            ) from error
        for parameter, requires_grad, text in self._settings:
            parameter.requires_grad = requires_grad
            if text is not None:
                parameter.data = text
        for generator, saved in self._generators:
            random_state.give_state(saved, generator)
        return build()

    def _match(self, node: Node, target: Any, path: Place) -> Build:
        """Find the place of ``node`` in ``target``, and note what has to be read for it."""
        try:
            return self._match_exactly(node, target, path)
        except _MisfitError as error:
            if self._strict:
                raise
            self.skipped.append(str(error).removeprefix(f"{self._reader.path}: "))
            return lambda: target

    def _match_exactly(self, node: Node, target: Any, path: Place) -> Build:
        for is_kind, match in self._by_kind:
            if is_kind(target):
                return match(self, node, target, path)
        if target is not None and (_is_structure(node) or not isinstance(target, _PLAIN)):
            self._refuse(
                path,
                f"the checkpoint has {_kind(node)}, and the target is a "
                f"{type(target).__name__}: put None there to take what was saved",
            )
        Decoder(self._want_back).decode(node, path)
        return lambda: self._decoder.decode(node, path)

    def _match_array(self, node: Node, target: Array, path: Place) -> Build:
        tag, payload = split(node)
        if tag != "$array":
            self._refuse(path, f"the checkpoint has {_kind(node)}, and the target is an array")
        self._note_array(payload, target, path)
        return lambda: target

    def _match_dict(self, node: Node, target: dict[Any, Any], path: Place) -> Build:
        tag, payload = split(node)
        kind = type(target)
        if type(node) is not dict or tag not in (
            ("$ordered",) if kind is OrderedDict else (None, "$dict")
        ):
            self._refuse(
                path, f"the checkpoint has {_kind(node)}, and the target is a {kind.__name__}"
            )
        saved = node if tag is None else self._decoder.pairs(payload, path)
        missing = [key for key in saved if key not in target]
        extra = [key for key in target if key not in saved]
        if missing or extra:
            why = f"the target lacks the keys {_listed(missing)}, and only it has {_listed(extra)}"
            if self._strict:
                self._refuse(path, why)
            self.skipped.append(f"{path}: {why}")
        parts = {
            key: self._match(saved[key], target[key], path.child(key))
            for key in target
            if key in saved
        }
        order = saved if kind is OrderedDict and self._strict else target

        def build() -> Any:
            built = {key: parts[key]() if key in parts else target[key] for key in order}
            if isinstance(target, defaultdict):
                return defaultdict(target.default_factory, built)
            return kind(built)

        return build

    def _match_sequence(self, node: Node, target: Any, path: Place) -> Build:
        kind = type(target)
        tag, payload = split(node)
        items = payload if tag == "$tuple" else node
        if type(items) is not list or (tag == "$tuple") is not (kind is tuple):
            self._refuse(
                path, f"the checkpoint has {_kind(node)}, and the target is a {kind.__name__}"
            )
        if len(items) != len(target):
            self._refuse(path, f"{len(items)} items were saved, and the target has {len(target)}")
        pairs = enumerate(zip(items, target, strict=True))
        parts = [self._match(item, place, path.child(i)) for i, (item, place) in pairs]
        return lambda: kind(build() for build in parts)

    def _match_object(self, node: Node, target: Any, path: Place) -> Build:
        tag, payload = split(node)
        saved = payload["class"] if tag == "$object" else None
        if saved != type(target).__name__:
            self._refuse(
                path,
                f"the checkpoint has {printable(saved or _kind(node))}, and the target is a "
                f"{type(target).__name__}: load it without `into`, and hand over what fits with "
                "load_state_dict",
            )
        Decoder(self._want).decode(payload["state"], path)
        self._objects.append((target, payload["state"], path))
        return lambda: target

    def _match_parameter(self, node: Node, target: Parameter, path: Place) -> Build:
        tag, payload = split(node)
        if tag != "$parameter":
            self._refuse(path, f"the checkpoint has {_kind(node)}, and the target is a Parameter")
        name = self._decoder.decode(payload["name"], path)
        if None not in (name, target.name) and name != target.name:
            self._refuse(path, f"{shown(name)} was saved, and the target is named {target.name!r}")
        data_tag, data = split(payload["data"])
        if (data_tag != "$array") is not target.is_text:
            holds = ("text", "an array") if data_tag != "$array" else ("an array", "text")
            self._refuse(path, f"the checkpoint has {holds[0]}, and the target holds {holds[1]}")
        text = self._decoder.decode(payload["data"], path) if target.is_text else None
        if text is None:
            self._note_array(data, target.data, Place(path.keys, ".data"))
        self._settings.append((target, payload["requires_grad"], text))
        return lambda: target

    def _match_random(self, node: Node, target: Any, path: Place) -> Build:
        tag, _ = split(node)
        saved = self._decoder.decode(node, path) if tag == "$random" else None
        if saved is None or not random_state.are_alike(target, saved):
            found = repr(saved) if saved is not None else _kind(node)
            self._refuse(path, f"the checkpoint has {found}, and the target is {target!r}")
        self._generators.append((target, saved))
        return lambda: target

    def _match_enum(self, node: Node, target: Enum, path: Place) -> Build:
        tag, payload = split(node)
        kind = type(target)
        if tag != "$enum" or payload["class"] != kind.__name__:
            self._refuse(path, f"the checkpoint has {_kind(node)}, and the target is {target!r}")
        value = self._decoder.decode(node, path)
        member = kind.__members__.get(payload["name"])
        if member is None and isinstance(target, Flag):
            with contextlib.suppress(ValueError):
                member = kind(value)
        if member is None:
            self._refuse(path, f"{kind.__name__} has no member {shown(payload['name'])}")
        return lambda: member

    def _match_record(self, node: Node, target: Any, path: Place) -> Build:
        """Match a namedtuple or a dataclass: what comes back is of the class of the target."""
        tag, payload = split(node)
        kind, names = type(target), fields_of(target)
        is_tuple = isinstance(target, tuple)
        if tag != ("$named" if is_tuple else "$dataclass") or payload["class"] != kind.__name__:
            self._refuse(
                path, f"the checkpoint has {_kind(node)}, and the target is a {kind.__name__}"
            )
        saved = payload["fields"]
        if set(saved) != set(names):
            self._refuse(
                path,
                f"the fields {_listed(list(saved))} were saved, and {kind.__name__} has "
                f"{_listed(list(names))}",
            )
        parts = {
            name: self._match(saved[name], getattr(target, name), path.child(name))
            for name in names
        }

        def build() -> Any:
            built = {name: part() for name, part in parts.items()}
            if is_tuple:
                return target._replace(**built)
            made = copy.copy(target)
            for name, value in built.items():
                # Frozen ones are made in this way too.
                object.__setattr__(made, name, value)
            return made

        return build

    def _want(self, name: str, _path: Place) -> Array:
        self._wanted.add(name)
        return _NOTHING

    def _want_back(self, name: str, path: Place) -> Array:
        self._returned.add(name)
        return self._want(name, path)

    def _note_array(self, name: str, target: Array, path: Place) -> None:
        tensor = self._reader.manifest.tensors[name]
        for what, have, want in (
            ("shape", target.shape, tensor.shape),
            ("dtype", target.dtype, tensor.dtype),
        ):
            if have != want:
                self._refuse(path, f"{what} {want} was saved, and the target has {what} {have}")
        if not target.size:
            return
        if not is_cupy(target) and not target.flags.writeable:
            self._refuse(path, "the target is read-only: give a writable array")
        key = (device_of(target), address(target), target.shape, target.strides)
        other, other_path = self._sources.setdefault(key, (name, path))
        if other != name:
            self._refuse(path, f"it is the same memory as {other_path}, but two arrays were saved")
        self._targets.setdefault(name, []).append(target)

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
        for name, targets in self._targets.items():
            plain = next((target for target in targets if _is_plain(target)), None)
            if plain is not None:
                direct[name] = plain
            elif name not in self._fresh:
                staged.append(name)
        self._reader.read(direct)
        for name in self._targets:
            self._spread(name, direct.get(name, self._fresh.get(name)))
        for part in self._reader.parts(staged):
            for name, source in self._reader.load(part).items():
                self._spread(name, source)

    def _spread(self, name: str, source: Array | None) -> None:
        """Copy what was read of an array into its other places."""
        for target in self._targets[name]:
            if source is not None and target is not source:
                transfer.copy_into(target, source)

    def _refuse(self, path: Place, why: str) -> NoReturn:
        raise _MisfitError(f"{self._reader.path}: {path}: {why}")

    _by_kind: ClassVar[tuple[tuple[Callable[[Any], bool], Callable[..., Build]], ...]] = (
        (lambda target: isinstance(target, Parameter), _match_parameter),
        (is_array, _match_array),
        (lambda target: type(target) in (dict, OrderedDict, defaultdict), _match_dict),
        (lambda target: type(target) in (list, tuple), _match_sequence),
        (is_stateful, _match_object),
        (lambda target: type(target) in random_state.KINDS, _match_random),
        (lambda target: isinstance(target, Enum), _match_enum),
        (is_record, _match_record),
    )


_NOTHING = np.empty(0)
_PLAIN = (bool, int, float, complex, str, bytes, np.generic, set, frozenset, PurePath)
_STRUCTURES = (
    "$dict",
    "$ordered",
    "$tuple",
    "$named",
    "$dataclass",
    "$array",
    "$parameter",
    "$object",
    "$random",
)


def _state_to_keep(target: Any) -> Any:
    """Return the state of an object as it is now: without a copy where it replaces its arrays."""
    if all(offers(method, "copy") for method in (target.state_dict, target.load_state_dict)):
        return target.state_dict(copy=False)
    return target.state_dict()


def _hand_over(target: Any, state: Any, strict: bool) -> None:
    options = {}
    if offers(target.load_state_dict, "copy"):
        options["copy"] = False
    if not strict and offers(target.load_state_dict, "strict"):
        options["strict"] = False
    target.load_state_dict(state, **options)


def _is_plain(array: Array) -> bool:
    return not is_cupy(array) and array.flags.c_contiguous


def _is_structure(node: Node) -> bool:
    tag, _ = split(node)
    return type(node) is list or (type(node) is dict and (tag is None or tag in _STRUCTURES))


def _kind(node: Node) -> str:
    tag, _ = split(node)
    name = type(node).__name__ if tag is None else tag.removeprefix("$")
    return f"{'an' if name[0] in 'aeio' else 'a'} {name}"


def _listed(keys: list[Any]) -> str:
    more = ", …" if len(keys) > 10 else ""
    return f"[{', '.join(map(shown, keys[:10]))}{more}]"
