"""Trees as JSON: plain values as they are, everything else under one ``$tag``.

Arrays leave the tree: a node holds their generated name, and the arrays go to the shards.
"""

from __future__ import annotations

import base64
import inspect
import json
import math
import struct
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np

from lucid_gpu.checkpoint import dtypes
from lucid_gpu.device.arrays import Array, address, device_of, is_array, is_cupy
from lucid_gpu.parameter import Parameter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Node: TypeAlias = Any
"""What JSON can hold: the encoded form of a tree."""

MAX_DEPTH = 100
"""Deeper trees are refused: JSON parsers recurse, and a tree that holds itself never ends."""

EXACT = 2**53
"""Integers below this size are the same number to every JSON parser."""


class TreeError(ValueError):
    """A node that no Encoder wrote; the text names its path in the tree."""


class Encoder:
    """Turns a tree into a node, and collects its arrays under generated names."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}
        self._names: dict[tuple[Any, ...], str] = {}
        self._parameters: dict[int, int] = {}
        self._alive: list[Any] = []

    def encode(self, value: Any, path: str = "tree", depth: int = 0) -> Node:
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
        if isinstance(value, np.generic):
            return self._scalar(value, path)
        if is_array(value) or isinstance(value, np.ndarray):
            return {"$array": self._array(value, path)}
        if isinstance(value, Parameter):
            return self._parameter(value, path, depth + 1)
        if is_stateful(value):
            state = self.encode(self._state(value), path, depth + 1)
            return {"$object": {"class": type(value).__name__, "state": state}}
        raise TypeError(
            f"{path} is a {type(value).__module__}.{type(value).__qualname__}, which a checkpoint "
            "cannot hold: use dicts, lists, tuples, numbers, str, bytes, arrays, Parameters, or "
            "an object with state_dict and load_state_dict"
        )

    def _state(self, value: Any) -> Any:
        """Return the state of an object: its own arrays, if it gives them, as none is changed."""
        own = offers_copy(value.state_dict)
        state = value.state_dict(copy=False) if own else value.state_dict()
        # Arrays are told apart by their addresses, so none may go before all are known.
        self._alive.append(state)
        return state

    def _dict(self, value: dict[Any, Any], path: str, depth: int) -> Node:
        for key in value:
            if type(key) is not str and type(key) is not int:
                raise TypeError(
                    f"{path} has the key {shown(key)}: a checkpoint holds str and int keys"
                )
        if _collide(value):
            raise ValueError(f"{path} has int keys that collide: keep them in a list of pairs")
        children = {k: self.encode(v, child(path, k), depth) for k, v in value.items()}
        if all(type(key) is str and key[:1] != "$" and _is_unicode(key) for key in value):
            return children
        return {"$dict": [[self.encode(k, path), node] for k, node in children.items()]}

    def _list(self, value: list[Any], path: str, depth: int) -> Node:
        return [self.encode(item, child(path, i), depth) for i, item in enumerate(value)]

    def _tuple(self, value: tuple[Any, ...], path: str, depth: int) -> Node:
        return {"$tuple": [self.encode(v, child(path, i), depth) for i, v in enumerate(value)]}

    def _int(self, value: int, *_: Any) -> Node:
        return value if abs(value) < EXACT else {"$int": hex(value)}

    def _float(self, value: float, *_: Any) -> Node:
        return value if math.isfinite(value) else {"$float": struct.pack(">d", value).hex()}

    def _str(self, value: str, *_: Any) -> Node:
        return value if _is_unicode(value) else {"$str": _text(_surrogates(value))}

    def _bytes(self, value: bytes, *_: Any) -> Node:
        return {"$bytes": _text(value)}

    def _scalar(self, value: np.generic, path: str) -> Node:
        spelled = _spelled(value.dtype, path)
        return {"$scalar": {"dtype": spelled, "data": _text(_scalar_bytes(value))}}

    def _array(self, value: Array, path: str) -> str:
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
            self._names[key] = f"t{len(self._names)}"
            self.arrays[self._names[key]] = value
        return self._names[key]

    def _parameter(self, value: Parameter, path: str, depth: int) -> Node:
        number = self._parameters.setdefault(id(value), len(self._parameters))
        return {
            "$parameter": {
                "id": number,
                "name": self.encode(value.name),
                "requires_grad": value.requires_grad,
                "data": self.encode(value.data, f"{path}.data", depth),
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
    }


class Decoder:
    """Turns a node back into a tree.

    Args:
        resolve: returns the array of a name; it also gets the array's path in the tree.

    Raises:
        TreeError: by every method, for a node that no Encoder wrote.
    """

    def __init__(self, resolve: Callable[[str, str], Array]) -> None:
        self._resolve = resolve
        self._parameters: dict[int, tuple[Any, Parameter]] = {}

    def decode(self, node: Node, path: str = "tree", depth: int = 0) -> Any:
        """Return the tree of ``node``; objects come back as their plain state dict."""
        if depth > MAX_DEPTH:
            raise TreeError(f"{path}: nested more than {MAX_DEPTH} deep")
        if type(node) is list:
            return [self.decode(item, child(path, i), depth + 1) for i, item in enumerate(node)]
        if type(node) is float and not math.isfinite(node):
            raise TreeError(f"{path}: the number is out of range")
        if type(node) is not dict:
            return node
        tag, payload = split(node)
        if tag is None:
            return {k: self.decode(v, child(path, k), depth + 1) for k, v in node.items()}
        decoder = self._by_tag.get(tag)
        if decoder is None:
            raise TreeError(f"{path}: unknown tag {tag!r:.100}")
        try:
            return decoder(self, payload, path, depth + 1)
        except TreeError:
            raise
        except (TypeError, ValueError, KeyError, OverflowError, struct.error):
            raise TreeError(f"{path}: malformed {tag} {payload!r:.100}") from None

    def pairs(self, payload: Any, path: str) -> dict[Any, Node]:
        """Return the keys and nodes of a ``$dict``."""
        keys = [self.decode(key, path) for key, _ in payload]
        if not all(type(key) in (str, int) for key in keys) or _collide(keys):
            raise TreeError(f"{path}: a dict key is neither str nor int, or the keys collide")
        pairs = dict(zip(keys, (node for _, node in payload), strict=True))
        if len(pairs) != len(payload):
            raise TreeError(f"{path}: a dict key is a duplicate")
        return pairs

    def _dict(self, payload: Any, path: str, depth: int) -> dict[Any, Any]:
        items = self.pairs(payload, path).items()
        return {key: self.decode(node, child(path, key), depth) for key, node in items}

    def _tuple(self, payload: Any, path: str, depth: int) -> tuple[Any, ...]:
        if type(payload) is not list:
            raise TypeError
        return tuple(self.decode(item, child(path, i), depth) for i, item in enumerate(payload))

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

    def _array(self, payload: Any, path: str, _depth: int) -> Array:
        return self._resolve(payload, path)

    def _parameter(self, payload: Any, path: str, depth: int) -> Parameter:
        number = payload["id"]
        if type(number) is not int or not 0 <= number < EXACT:
            raise TypeError
        if number in self._parameters:
            first, parameter = self._parameters[number]
            # Compared as text: in Python, 1 equals True.
            if json.dumps(first) != json.dumps(payload):
                raise TreeError(f"{path}: parameter {number} is here another than before")
            return parameter
        data = self.decode(payload["data"], f"{path}.data", depth)
        if type(payload["requires_grad"]) is not bool:
            raise TypeError
        if type(data) is not str and not is_array(data):
            raise TypeError
        name = self.decode(payload["name"], path)
        parameter = Parameter(data, payload["requires_grad"], name)
        self._parameters[number] = payload, parameter
        return parameter

    def _object(self, payload: Any, path: str, depth: int) -> Any:
        if type(payload["class"]) is not str:
            raise TypeError
        return self.decode(payload["state"], path, depth)

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
    }


def split(node: Node) -> tuple[str | None, Any]:
    """Return the tag and payload of a tagged node; the tag is None for any other node."""
    if type(node) is dict and any(key[:1] == "$" for key in node):
        return next(iter(node.items())) if len(node) == 1 else (" ".join(node), None)
    return None, node


def child(path: str, key: str | int) -> str:
    """Return the path of one part of a collection; long keys are cut."""
    return f"{path}[{shown(key)}]"


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut to 100 characters; a very long int in hexadecimal."""
    is_long = type(value) is int and value.bit_length() > EXACT.bit_length() ** 2
    return f"{hex(value) if is_long else repr(value):.100}"


def printable(text: str) -> str:
    """Return a name as it is, or quoted if it would move the cursor of a terminal."""
    return text if text.isprintable() else repr(text)


def _collide(keys: Collection[Any]) -> bool:
    """Say whether so many int keys have one hash that a dict of them takes quadratic time."""
    hashes = [hash(key) for key in keys if type(key) is int and abs(key) >= _LEAST_COLLISION]
    return len(hashes) > _MOST_COLLISIONS and max(Counter(hashes).values()) > _MOST_COLLISIONS


_LEAST_COLLISION = sys.hash_info.modulus
_MOST_COLLISIONS = 100


def is_stateful(value: Any) -> bool:
    """Say whether ``value`` is an object that gives and takes a state dict."""
    return not isinstance(value, type) and all(
        callable(getattr(value, method, None)) for method in ("state_dict", "load_state_dict")
    )


def offers_copy(method: Callable[..., Any]) -> bool:
    """Say whether a method has the parameter ``copy``, which False spares the copies."""
    try:
        return "copy" in inspect.signature(method).parameters
    except (TypeError, ValueError):
        return False


def _spelled(dtype: dtypes.DType, path: str) -> Any:
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


def _raw(text: Any) -> bytes:
    return base64.b64decode(text, validate=True)
