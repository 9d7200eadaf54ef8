"""Nested values of slots and options: copying them, type for type, and finding their arrays."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.device.arrays import is_cupy
from lucid_gpu.parameter import Parameter

_LEAVES = (type(None), bool, int, float, complex, str, bytes)

CopyArray: TypeAlias = Callable[[Any], Any]


def _is_leaf(value: object) -> bool:
    # By exact type: a subclass may carry attributes, which no copy here would know of.
    return type(value) in _LEAVES or isinstance(value, np.generic)


def _is_plain_array(value: object) -> bool:
    """Say whether ``value`` is an array of numbers and nothing else: no mask, no objects."""
    if is_cupy(value):
        return True
    return type(value) in (np.ndarray, np.memmap) and not value.dtype.hasobject  # type: ignore[attr-defined]


def is_plain(value: object) -> bool:
    """Say whether :func:`copy_tree` can copy ``value``, down to its leaves."""
    if type(value) is dict:
        return all(type(key) in _LEAVES for key in value) and all(map(is_plain, value.values()))
    if type(value) in (list, tuple):
        return all(map(is_plain, value))  # type: ignore[call-overload]
    return _is_leaf(value) or _is_plain_array(value) or isinstance(value, Parameter)


def copy_tree(value: Any, copy_array: CopyArray, path: str) -> Any:
    """Copy a nested value; arrays by ``copy_array``, Parameters with data and gradient.

    Args:
        value: numbers, ``str``, ``bytes``, None, arrays, Parameters, and lists, tuples and dicts
            of these.
        copy_array: copies an array.
        path: how errors call ``value``.

    Raises:
        TypeError: something in it is no plain data; the text names its path.

    Example:
        >>> copy_tree({"a": (1, [2.0, None])}, np.copy, "options")
        {'a': (1, [2.0, None])}
    """
    if _is_leaf(value):
        return value
    if _is_plain_array(value):
        return copy_array(value)
    if isinstance(value, Parameter):
        twin = copy.copy(value)
        twin.rehome(
            copy_tree(value.data, copy_array, f"{path}.data"),
            copy_tree(value.grad, copy_array, f"{path}.grad"),
        )
        return twin
    if type(value) is dict:
        for key in value:
            if type(key) not in _LEAVES:
                raise TypeError(_refusal(f"a key of {path}", key))
        return {k: copy_tree(item, copy_array, f"{path}[{k!r}]") for k, item in value.items()}
    if type(value) in (list, tuple):
        items = [copy_tree(item, copy_array, f"{path}[{i}]") for i, item in enumerate(value)]
        return items if type(value) is list else tuple(items)
    raise TypeError(_refusal(path, value))


def arrays_in(value: Any) -> Iterator[Any]:
    """Yield the arrays of a nested value that :func:`copy_tree` would copy.

    Example:
        >>> [array.size for array in arrays_in({"a": [np.zeros(2), (1, np.zeros(3))]})]
        [2, 3]
    """
    if _is_plain_array(value):
        yield value
    elif isinstance(value, Parameter):
        yield from arrays_in((value.data, value.grad))
    elif type(value) in (dict, list, tuple):
        for item in value.values() if type(value) is dict else value:
            yield from arrays_in(item)


def _refusal(path: str, value: object) -> str:
    return (
        f"{path} is a {type(value).__name__}, which is no plain data: use numbers, strings, None, "
        "arrays, Parameters, and lists, tuples and dicts of them; a live object can be an option "
        "of its own, which is saved by its class name and its state_dict()"
    )
