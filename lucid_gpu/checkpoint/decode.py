"""The way back from a node to a tree. Nothing that a file names is imported or called."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lucid_gpu.checkpoint import dtypes, random_state
from lucid_gpu.checkpoint.place import ROOT, Place
from lucid_gpu.checkpoint.tree import EXACT, MAX_DEPTH, Node, collide, split
from lucid_gpu.device.arrays import Array, is_array
from lucid_gpu.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable


class TreeError(ValueError):
    """A node that no Encoder wrote; the text names its path in the tree."""


class Decoder:
    """Turns a node back into a tree.

    Args:
        resolve: returns the array of a name; it also gets the array's path in the tree.

    Raises:
        TreeError: by every method, for a node that no Encoder wrote.
    """

    def __init__(self, resolve: Callable[[str, Place], Array]) -> None:
        self._resolve = resolve
        self._parameters: dict[int, tuple[Any, Parameter]] = {}

    def decode(self, node: Node, path: Place = ROOT, depth: int = 0) -> Any:
        """Return the tree of ``node``; what is of a class of its own comes back as plain data."""
        if depth > MAX_DEPTH:
            raise TreeError(f"{path}: nested more than {MAX_DEPTH} deep")
        if type(node) is list:
            return [self.decode(item, path.child(i), depth + 1) for i, item in enumerate(node)]
        if type(node) is float and not math.isfinite(node):
            raise TreeError(f"{path}: the number is out of range")
        if type(node) is not dict:
            return node
        tag, payload = split(node)
        if tag is None:
            return {k: self.decode(v, path.child(k), depth + 1) for k, v in node.items()}
        decoder = self._by_tag.get(tag)
        if decoder is None:
            raise TreeError(f"{path}: unknown tag {tag!r:.100}")
        try:
            return decoder(self, payload, path, depth + 1)
        except TreeError:
            raise
        except (TypeError, ValueError, KeyError, OverflowError, struct.error):
            raise TreeError(f"{path}: malformed {tag} {payload!r:.100}") from None

    def pairs(self, payload: Any, path: Place) -> dict[Any, Node]:
        """Return the keys and nodes of a ``$dict``."""
        keys = [self.decode(key, path) for key, _ in payload]
        if not all(type(key) in (str, int) for key in keys) or collide(keys):
            raise TreeError(f"{path}: a dict key is neither str nor int, or the keys collide")
        pairs = dict(zip(keys, (node for _, node in payload), strict=True))
        if len(pairs) != len(payload):
            raise TreeError(f"{path}: a dict key is a duplicate")
        return pairs

    def _dict(self, payload: Any, path: Place, depth: int) -> dict[Any, Any]:
        items = self.pairs(payload, path).items()
        return {key: self.decode(node, path.child(key), depth) for key, node in items}

    def _tuple(self, payload: Any, path: Place, depth: int) -> tuple[Any, ...]:
        if type(payload) is not list:
            raise TypeError
        return tuple(self.decode(item, path.child(i), depth) for i, item in enumerate(payload))

    def _int(self, payload: Any, *_: Any) -> int:
        return int(payload, 16)

    def _float(self, payload: Any, *_: Any) -> float:
        return float(struct.unpack(">d", bytes.fromhex(payload))[0])

    def _str(self, payload: Any, *_: Any) -> str:
        return _raw(payload).decode("utf-8", "surrogatepass")

    def _bytes(self, payload: Any, *_: Any) -> bytes:
        return _raw(payload)

    def _scalar(self, payload: Any, *_: Any) -> np.generic:
        dtype, data = dtypes.from_json(payload["dtype"]), _raw(payload["data"])
        if len(data) != dtype.itemsize:
            raise TypeError
        # An array would strip the NULs at the end of a string.
        if dtype.kind == "S":
            return np.bytes_(data)
        if dtype.kind == "U":
            return np.str_(data.decode("utf-32-le", "surrogatepass"))
        scalar: Any = np.ndarray((), dtype, bytearray(data))
        return scalar[()]  # type: ignore[no-any-return]

    def _array(self, payload: Any, path: Place, _depth: int) -> Array:
        return self._resolve(payload, path)

    def _parameter(self, payload: Any, path: Place, depth: int) -> Parameter:
        number = payload["id"]
        if type(number) is not int or not 0 <= number < EXACT:
            raise TypeError
        if number in self._parameters:
            first, parameter = self._parameters[number]
            # Compared as text: in Python, 1 equals True.
            if json.dumps(first) != json.dumps(payload):
                raise TreeError(f"{path}: parameter {number} is here another than before")
            self.decode(payload["data"], Place(path.keys, ".data"), depth)
            return parameter
        data = self.decode(payload["data"], Place(path.keys, ".data"), depth)
        if type(payload["requires_grad"]) is not bool:
            raise TypeError
        if type(data) is not str and not is_array(data):
            raise TypeError
        name = self.decode(payload["name"], path)
        parameter = Parameter(data, payload["requires_grad"], name)
        self._parameters[number] = payload, parameter
        return parameter

    def _object(self, payload: Any, path: Place, depth: int) -> Any:
        if type(payload["class"]) is not str:
            raise TypeError
        return self.decode(payload["state"], path, depth)

    def _ordered(self, payload: Any, path: Place, depth: int) -> OrderedDict[Any, Any]:
        return OrderedDict(self._dict(payload, path, depth))

    def _set(self, payload: Any, path: Place, depth: int) -> set[Any]:
        if type(payload) is not list:
            raise TypeError
        items = [self.decode(item, path, depth) for item in payload]
        if collide(items) or len(set(items)) != len(items):
            raise TreeError(f"{path}: the items of a set repeat or collide")
        return set(items)

    def _frozenset(self, payload: Any, path: Place, depth: int) -> frozenset[Any]:
        return frozenset(self._set(payload, path, depth))

    def _complex(self, payload: Any, *_: Any) -> complex:
        return complex(*struct.unpack(">dd", bytes.fromhex(payload)))

    def _path(self, payload: Any, path: Place, depth: int) -> Path:
        return Path(_checked(self.decode(payload, path, depth), str))

    def _enum(self, payload: Any, path: Place, depth: int) -> Any:
        if not {type(payload["class"]), type(payload["name"])} <= {str, type(None)}:
            raise TypeError
        value = self.decode(payload["value"], path, depth)
        if type(value) not in (str, int, float, bool):
            raise TypeError
        return value

    def _named(self, payload: Any, path: Place, depth: int) -> tuple[Any, ...]:
        return tuple(self._dataclass(payload, path, depth).values())

    def _dataclass(self, payload: Any, path: Place, depth: int) -> dict[str, Any]:
        _checked(payload["class"], str)
        fields = _checked(payload["fields"], dict)
        return {name: self.decode(node, path.child(name), depth) for name, node in fields.items()}

    def _random(self, payload: Any, path: Place, depth: int) -> Any:
        return random_state.from_state(payload["class"], self.decode(payload["state"], path, depth))

    _by_tag: ClassVar[dict[str, Callable[..., Any]]] = {
        "$dict": _dict,
        "$tuple": _tuple,
        "$int": _int,
        "$float": _float,
        "$str": _str,
        "$bytes": _bytes,
        "$scalar": _scalar,
        "$array": _array,
        "$parameter": _parameter,
        "$object": _object,
        "$ordered": _ordered,
        "$set": _set,
        "$frozenset": _frozenset,
        "$complex": _complex,
        "$path": _path,
        "$enum": _enum,
        "$named": _named,
        "$dataclass": _dataclass,
        "$random": _random,
    }


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _raw(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)
