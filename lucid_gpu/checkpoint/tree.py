"""Trees as JSON: plain values as they are, everything else under one ``$tag``.

Arrays leave the tree: a node holds the name of each, and the arrays go to the shards.
"""

from __future__ import annotations

import base64
import dataclasses
import inspect
import json
import math
import struct
from collections import Counter, OrderedDict, defaultdict
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from lucid_gpu.checkpoint import dtypes, random_state
from lucid_gpu.checkpoint.place import ROOT, Place, shown
from lucid_gpu.device.arrays import Array, address, device_of, is_array, is_cupy
from lucid_gpu.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Node: TypeAlias = Any
"""What JSON can hold: the encoded form of a tree."""

MAX_DEPTH = 100
"""Deeper trees are refused: JSON parsers recurse, and a tree that holds itself never ends."""

_LONGEST_NAME = 200
_RESERVED = "__metadata__"
"""What safetensors keeps for itself in a header."""

EXACT = 2**53
"""Integers below this size are the same number to every JSON parser."""


def is_record(value: Any) -> bool:
    """Say whether ``value`` is a namedtuple or an instance of a dataclass."""
    if isinstance(value, tuple):
        return hasattr(value, "_fields")
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def fields_of(record: Any) -> tuple[str, ...]:
    """Return the names of the fields of a namedtuple or dataclass."""
    if isinstance(record, tuple):
        return tuple(record._fields)  # type: ignore[attr-defined]
    return tuple(field.name for field in dataclasses.fields(record))


def is_stateful(value: Any) -> bool:
    """Say whether ``value`` is an object that gives and takes a state dict."""
    return not isinstance(value, type) and all(
        callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")
    )


class Encoder:
    """Turns a tree into a node, and collects its arrays under the names of their places."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._repeats: Counter[str] = Counter()
        self._names: dict[tuple[Any, ...], str] = {}
        self._parameters: dict[int, int] = {}
        self._alive: list[Any] = []

    def encode(self, value: Any, path: Place = ROOT, depth: int = 0) -> Node:
        """Return the node of ``value``.

        Raises:
            TypeError: the tree holds what a checkpoint cannot.
            ValueError: the tree is too deep, or holds itself.
        """
        if depth > MAX_DEPTH:
            raise ValueError(f"{path} is nested more than {MAX_DEPTH} deep, or holds itself")
        if value is None or type(value) is bool:
            return value
        encoder = self._by_type.get(type(value))
        if encoder is not None:
            return encoder(self, value, path, depth + 1)
        for is_kind, encode in self._by_kind:
            if is_kind(value):
                return encode(self, value, path, depth + 1)
        raise TypeError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint "
            "cannot hold: use dicts, lists, tuples, sets, numbers, str, bytes, arrays, Parameters, "
            "records, random generators of NumPy and Python, or an object with state_dict and "
            "load_state_dict"
        )

    def _object(self, value: Any, path: Place, depth: int) -> Node:
        state = self.encode(self._state(value), path, depth)
        return {"$object": {"class": type(value).__name__, "state": state}}

    def _state(self, value: Any) -> Any:
        """Return the state of an object: its own arrays, if it gives them, as none is changed."""
        own = offers(value.state_dict, "copy")
        state = value.state_dict(copy=False) if own else value.state_dict()
        # Arrays are told apart by their addresses, so none may go before all are known.
        self._alive.append(state)
        return state

    def _dict(self, value: dict[Any, Any], path: Place, depth: int) -> Node:
        for key in value:
            if type(key) is not str and type(key) is not int:
                raise TypeError(
                    f"{path} has the key {shown(key)}: a checkpoint holds str and int keys"
                )
        if collide(value):
            raise ValueError(f"{path} has int keys that collide: keep them in a list of pairs")
        children = {k: self.encode(v, path.child(k), depth) for k, v in value.items()}
        if all(type(key) is str and key[:1] != "$" and _is_unicode(key) for key in value):
            return children
        return {"$dict": [[self.encode(k, path), node] for k, node in children.items()]}

    def _list(self, value: list[Any], path: Place, depth: int) -> Node:
        return [self.encode(item, path.child(i), depth) for i, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: Place, depth: int) -> Node:
        return {"$tuple": [self.encode(v, path.child(i), depth) for i, v in enumerate(value)]}

    def _ordered(self, value: dict[Any, Any], path: Place, depth: int) -> Node:
        encoded = self._dict(value, path, depth)
        tag, pairs = split(encoded)
        return {"$ordered": pairs if tag else [list(pair) for pair in encoded.items()]}

    def _set(self, value: set[Any] | frozenset[Any], path: Place, depth: int) -> Node:
        place = Place(path.keys, "{…}")
        items = [self.encode(item, place, depth) for item in value]
        if collide(value):
            raise ValueError(f"{path} has items that collide: keep them in a list")
        # Sets have no order that lasts: the same set is to give the same bytes.
        return {f"${type(value).__name__}": sorted(items, key=json.dumps)}

    def _complex(self, value: complex, *_: Any) -> Node:
        return {"$complex": struct.pack(">dd", value.real, value.imag).hex()}

    def _enum(self, value: Enum, path: Place, _depth: int) -> Node:
        if type(value.value) not in (str, int, float, bool):
            raise TypeError(f"{path} is {value!r:.100}, whose value is no str or number")
        node = self.encode(value.value, path)
        return {"$enum": {"class": type(value).__name__, "name": value.name, "value": node}}

    def _record(self, value: Any, path: Place, depth: int) -> Node:
        """Encode a namedtuple or a dataclass."""
        names = fields_of(value)
        fields = {
            name: self.encode(getattr(value, name), path.child(name), depth) for name in names
        }
        tag = "$named" if isinstance(value, tuple) else "$dataclass"
        return {tag: {"class": type(value).__name__, "fields": fields}}

    def _random(self, value: Any, path: Place, depth: int) -> Node:
        try:
            state = random_state.state_of(value)
        except TypeError as error:
            raise TypeError(f"{path}: {error}") from None
        kind = random_state.KINDS[type(value)]
        return {"$random": {"class": kind, "state": self.encode(state, path, depth)}}

    def _int(self, value: int, *_: Any) -> Node:
        return value if abs(value) < EXACT else {"$int": hex(value)}

    def _float(self, value: float, *_: Any) -> Node:
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}

    def _str(self, value: str, *_: Any) -> Node:
        return value if _is_unicode(value) else {"$str": _text(_surrogates(value))}

    def _bytes(self, value: bytes, *_: Any) -> Node:
        return {"$bytes": _text(value)}

    def _path(self, value: PurePath, *_: Any) -> Node:
        return {"$path": self._str(str(value))}

    def _scalar(self, value: np.generic, path: Place, _depth: int) -> Node:
        spelled = _spelled(value.dtype, path)
        return {"$scalar": {"dtype": spelled, "data": _text(_scalar_bytes(value))}}

    def _array(self, value: Array, path: Place, _depth: int) -> Node:
        if not is_cupy(value) and type(value) not in (np.ndarray, np.memmap):
            raise TypeError(
                f"{path} is a {type(value).__name__}, of which only the plain values could be "
                "stored: convert it with np.asarray, and store what else it holds beside it"
            )
        _spelled(value.dtype, path)
        key: tuple[Any, ...] = (id(value),)
        if value.size:
            key = (device_of(value), address(value), value.shape, value.strides)
            key = (*key, value.dtype)
        if key not in self._names:
            self._names[key] = self._new_name(path)
            self.arrays[self._names[key]] = value
        return {"$array": self._names[key]}

    def _new_name(self, path: Place) -> str:
        """Return the name of a tensor: its path, and a number if another has that already."""
        name = base = path.name.encode(errors="replace").decode()[:_LONGEST_NAME] or "array"
        while name in self.arrays or name == _RESERVED:
            self._repeats[base] += 1
            name = f"{base}~{self._repeats[base] + 1}"
        return name

    def _parameter(self, value: Parameter, path: Place, depth: int) -> Node:
        number = self._parameters.setdefault(id(value), len(self._parameters))
        return {
            "$parameter": {
                "id": number,
                "name": self.encode(value.name),
                "requires_grad": value.requires_grad,
                "data": self.encode(value.data, Place(path.keys, ".data"), depth),
            }
        }

    _by_type: ClassVar[dict[type, Callable[..., Node]]] = {
        dict: _dict,
        list: _list,
        tuple: _tuple,
        int: _int,
        float: _float,
        str: _str,
        bytes: _bytes,
        complex: _complex,
        OrderedDict: _ordered,
        defaultdict: _dict,
        set: _set,
        frozenset: _set,
        **dict.fromkeys(random_state.KINDS, _random),
    }
    _by_kind: ClassVar[tuple[tuple[Callable[[Any], bool], Callable[..., Node]], ...]] = (
        (lambda value: isinstance(value, np.generic), _scalar),
        (lambda value: is_array(value) or isinstance(value, np.ndarray), _array),
        (lambda value: isinstance(value, Parameter), _parameter),
        (is_stateful, _object),
        (lambda value: isinstance(value, PurePath), _path),
        (lambda value: isinstance(value, Enum), _enum),
        (is_record, _record),
    )


def split(node: Node) -> tuple[str | None, Any]:
    """Return the tag and payload of a tagged node; the tag is None for any other node."""
    if type(node) is dict and any(key[:1] == "$" for key in node):
        return next(iter(node.items())) if len(node) == 1 else (" ".join(node), None)
    return None, node


def collide(keys: Collection[Any]) -> bool:
    """Say whether so many keys have one hash that a dict or set of them takes quadratic time.

    The hashes of text differ from process to process, so no file can make them collide.
    """
    if len(keys) <= _MOST_COLLISIONS:
        return False
    hashes = Counter(hash(key) for key in keys if type(key) not in (str, bytes))
    return bool(hashes) and max(hashes.values()) > _MOST_COLLISIONS


_MOST_COLLISIONS = 100


def offers(method: Callable[..., Any], parameter: str) -> bool:
    """Say whether a method has a parameter."""
    try:
        return parameter in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False


def _spelled(dtype: dtypes.DType, path: Place) -> Any:
    try:
        return dtypes.to_json(dtype)
    except TypeError as error:
        raise TypeError(f"{path}: {error}") from None


def _scalar_bytes(value: np.generic) -> bytes:
    if isinstance(value, np.bytes_):
        return bytes(value)
    if isinstance(value, np.str_):
        return value.encode("utf-32-le", "surrogatepass")
    return value.tobytes()


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _surrogates(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
