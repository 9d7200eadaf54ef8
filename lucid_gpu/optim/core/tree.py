"""Nested values of slots and options: copying them, type for type, and finding their arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.device.arrays import is_cupy
from lucid_gpu.parameter import Parameter
from lucid_gpu.row_gradient import RowGradient

_LEAVES = (type(None), bool, int, float, complex, str, bytes)

CopyArray: TypeAlias = Callable[[Any], Any]

MAX_DEPTH = 100
"""Deeper values are refused, as in a checkpoint: what walks them recurses, and what holds itself
never ends."""


def _is_leaf(value: object) -> bool:
    # By exact type: a subclass may carry attributes, which no copy here would know of.
    return type(value) in _LEAVES or isinstance(value, np.generic)


def _is_plain_array(value: object) -> bool:
    """Say whether ``value`` is an array of numbers and nothing else: no mask, no objects."""
    if is_cupy(value):
        return True
    return type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject  # type: ignore[attr-defined]


def is_plain(value: object, depth: int = 0) -> bool:
    """Say whether :func:`copy_tree` can copy ``value``, down to its leaves."""
    if depth > MAX_DEPTH:
        return False
    if type(value) is dict and not all(type(key) in _LEAVES for key in value):
        return False
    if type(value) in (dict, list, tuple):
        return all(is_plain(item, depth + 1) for item in _items(value))
    return _is_leaf(value) or _is_plain_array(value) or isinstance(value, Parameter)


def check_depth(value: object, path: str, depth: int = 0) -> None:
    """Raise ValueError if ``value`` is nested more than ``MAX_DEPTH`` deep.

    Args:
        value: anything; dicts, lists, tuples and Parameters are looked into.
        path: how the error calls it.
        depth: how deep it lies itself.
    """
    _refuse_beyond_limit(path, depth)
    if isinstance(value, Parameter):
        check_depth((value.data, value.grad), path, depth)
    elif type(value) in (dict, list, tuple):
        for item in _items(value):
            check_depth(item, path, depth + 1)


def copy_tree(value: Any, copy_array: CopyArray, path: str, depth: int = 0) -> Any:
    """Copy a nested value; arrays by ``copy_array``, Parameters with data and gradient.

    Args:
        value: numbers, ``str``, ``bytes``, None, arrays, Parameters, and lists, tuples and dicts
            of these.
        copy_array: copies an array.
        path: how errors call ``value``.
        depth: how deep it lies itself.

    Raises:
        TypeError: something in it is no plain data; the text names its path.
        ValueError: it is nested more than ``MAX_DEPTH`` deep.

    Example:
        >>> copy_tree({"a": (1, [2.0, None])}, np.copy, "options")
        {'a': (1, [2.0, None])}
    """
    _refuse_beyond_limit(path, depth)
    if _is_leaf(value):
        return value
    if _is_plain_array(value):
        return copy_array(value)

    def copy_item(item: Any, path: str) -> Any:
        return copy_tree(item, copy_array, path, depth + 1)

    if isinstance(value, RowGradient):
        return RowGradient(copy_array(value.rows), copy_array(value.values))
    if isinstance(value, Parameter):
        data, grad = copy_item(value.data, f"{path}.data"), copy_item(value.grad, f"{path}.grad")
        twin = copy.copy(value)
        twin.rehome(data, grad)
        return twin
    if type(value) is dict:
        for key in value:
            if type(key) not in _LEAVES:
                raise TypeError(_refusal(f"a key of {path}", key))
        return {k: copy_item(item, f"{path}[{k!r}]") for k, item in value.items()}
    if type(value) in (list, tuple):
        items = [copy_item(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if type(value) is list else tuple(items)
    raise TypeError(_refusal(path, value))


def arrays_in(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the arrays of a nested value that :func:`copy_tree` would copy.

    Raises:
        ValueError: it is nested more than ``MAX_DEPTH`` deep.

    Example:
        >>> [array.size for array in arrays_in({"a": [np.zeros(2), (1, np.zeros(3))]})]
        [2, 3]
    """
    _refuse_beyond_limit("the state of a parameter", depth)
    if _is_plain_array(value):
        yield value
    elif isinstance(value, RowGradient):
        yield from (value.rows, value.values)
    elif isinstance(value, Parameter):
        yield from arrays_in((value.data, value.grad), depth)
    elif type(value) in (dict, list, tuple):
        for item in _items(value):
            yield from arrays_in(item, depth + 1)


def _items(value: Any) -> Iterable[Any]:
    return value.values() if type(value) is dict else value


def _refuse_beyond_limit(path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(
            f"{path:.100} is nested more than {MAX_DEPTH} levels deep, or holds itself: flatten it"
        )


def _refusal(path: str, value: object) -> str:
    return (
        f"{path} is a {type(value).__name__}, which is no plain data: use numbers, strings, None, "
        "arrays, Parameters, and lists, tuples and dicts of them; a live object can be an option "
        "of its own, which is saved by its class name and its state_dict()"
    )
