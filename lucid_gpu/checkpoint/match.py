"""Finding the place of each part of a checkpoint in a tree that exists; nothing changes yet."""

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
from lucid_gpu.checkpoint.place import Place, printable, shown
from lucid_gpu.checkpoint.tree import Node, fields_of, is_record, is_stateful, split
from lucid_gpu.device.arrays import Array, address, device_of, is_array, is_cupy
from lucid_gpu.parameter import Parameter

if TYPE_CHECKING:
    from lucid_gpu.checkpoint.reader import Reader

Build = Callable[[], Any]
"""Returns the restored form of one place in the tree, once everything was restored."""


class _MisfitError(CheckpointError):
    """A part of a checkpoint does not fit where it should go."""


class Matcher:
    """Goes through a node and the tree it is restored into, and notes what has to be done.

    Attributes:
        skipped: what does not fit, where that is no error.
        targets: the arrays into which each tensor is read.
        objects: those that take a state, with its node and place.
        settings: Parameters, with their ``requires_grad``, and their text if they hold one.
        generators: random generators, with one in the state that each is to take.
        wanted: the tensors for which new arrays are needed.
        returned: those of them that are part of the tree that is returned.
        fresh: the new arrays, once they were read.
        decoder: makes a tree of a node, with the new arrays in it.
    """

    def __init__(self, reader: Reader, strict: bool) -> None:
        self.skipped: list[str] = []
        self.targets: dict[str, list[Array]] = {}
        self.objects: list[tuple[Any, Node, Place]] = []
        self.settings: list[tuple[Parameter, bool, str | None]] = []
        self.generators: list[tuple[Any, Any]] = []
        self.wanted: set[str] = set()
        self.returned: set[str] = set()
        self.fresh: dict[str, Array] = {}
        self.decoder = Decoder(lambda name, _: self.fresh[name])
        self._reader = reader
        self._strict = strict
        self._sources: dict[tuple[Any, ...], tuple[str, Place]] = {}

    def match(self, node: Node, target: Any, path: Place) -> Build:
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
        return lambda: self.decoder.decode(node, path)

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
        saved = node if tag is None else self.decoder.pairs(payload, path)
        missing = [key for key in saved if key not in target]
        extra = [key for key in target if key not in saved]
        if missing or extra:
            lacks = f"the target lacks the keys {_listed(missing)}" if missing else ""
            has = f"only the target has the keys {_listed(extra)}" if extra else ""
            why = ", and ".join(filter(None, (lacks, has)))
            if self._strict:
                self._refuse(path, why)
            self.skipped.append(f"{path}: {why}")
        parts = {
            key: self.match(saved[key], target[key], path.child(key))
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
        parts = [self.match(item, place, path.child(i)) for i, (item, place) in pairs]
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
        self.objects.append((target, payload["state"], path))
        return lambda: target

    def _match_parameter(self, node: Node, target: Parameter, path: Place) -> Build:
        tag, payload = split(node)
        if tag != "$parameter":
            self._refuse(path, f"the checkpoint has {_kind(node)}, and the target is a Parameter")
        name = self.decoder.decode(payload["name"], path)
        if None not in (name, target.name) and name != target.name:
            self._refuse(path, f"{shown(name)} was saved, and the target is named {target.name!r}")
        data_tag, data = split(payload["data"])
        if (data_tag != "$array") is not target.is_text:
            holds = ("text", "an array") if data_tag != "$array" else ("an array", "text")
            self._refuse(path, f"the checkpoint has {holds[0]}, and the target holds {holds[1]}")
        text = self.decoder.decode(payload["data"], path) if target.is_text else None
        if text is None:
            self._note_array(data, target.data, Place(path.keys, ".data"))
        self.settings.append((target, payload["requires_grad"], text))
        return lambda: target

    def _match_random(self, node: Node, target: Any, path: Place) -> Build:
        tag, _ = split(node)
        saved = self.decoder.decode(node, path) if tag == "$random" else None
        if saved is None or not random_state.are_alike(target, saved):
            found = repr(saved) if saved is not None else _kind(node)
            self._refuse(path, f"the checkpoint has {found}, and the target is {target!r}")
        self.generators.append((target, saved))
        return lambda: target

    def _match_enum(self, node: Node, target: Enum, path: Place) -> Build:
        tag, payload = split(node)
        kind = type(target)
        if tag != "$enum" or payload["class"] != kind.__name__:
            self._refuse(path, f"the checkpoint has {_kind(node)}, and the target is {target!r}")
        value = self.decoder.decode(node, path)
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
            name: self.match(saved[name], getattr(target, name), path.child(name)) for name in names
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
        self.wanted.add(name)
        return _NOTHING

    def _want_back(self, name: str, path: Place) -> Array:
        self.returned.add(name)
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
        self.targets.setdefault(name, []).append(target)

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
