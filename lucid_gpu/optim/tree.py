"""Nested values of slots and options: copying them, type for type."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu import device
from lucid_gpu.parameter import Parameter

_LEAVES = (type(None), bool, int, float, complex, str, bytes, np.generic, np.dtype)

CopyArray: TypeAlias = Callable[[Any], Any]


def is_plain(value: object) -> bool:
    """Say whether ``value`` is data that :func:`copy_tree` can copy, down to its leaves."""
    if isinstance(value, dict):
        return all(map(is_plain, value)) and all(map(is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return isinstance(value, (*_LEAVES, Parameter)) or device.is_array(value)


def copy_tree(value: Any, copy_array: CopyArray, path: str) -> Any:
    """Copy a nested value; arrays by ``copy_array``, Parameters with data and gradient.

    Raises:
        TypeError: something in it is no plain data; the text names its path.
    """
    if isinstance(value, _LEAVES):
        return value
    if device.is_array(value):
        return copy_array(value)
    if isinstance(value, Parameter):
        twin = copy.copy(value)
        twin.rehome(
            copy_tree(value.data, copy_array, f"{path}.data"),
            copy_tree(value.grad, copy_array, f"{path}.grad"),
        )
        return twin
    if isinstance(value, dict):
        result = copy.copy(value)
        for key, item in value.items():
            result[key] = copy_tree(item, copy_array, f"{path}[{key!r}]")
        return result
    if isinstance(value, list | tuple):
        items = [copy_tree(item, copy_array, f"{path}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    raise TypeError(
        f"{path} holds a {type(value).__name__}, which is no plain data: use numbers, strings, "
        "None, lists, tuples, dicts, arrays and Parameters, or make a live object an option of "
        "its own, which is saved by its class name and its state_dict()"
    )
