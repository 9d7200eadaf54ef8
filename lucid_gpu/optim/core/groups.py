"""Parameter groups: what may be optimized, under which names, in which group."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from lucid_gpu.device.arrays import IMMUTABLE, is_array, is_immutable
from lucid_gpu.parameter import Parameter

CLASS = "optimizer_class"
"""The key of a saved group that names the class of the optimizer."""

NOT_OPTIONS = ("params", "param_names", CLASS)
"""Keys of a group that are not hyperparameters."""


def is_parameter(value: object) -> bool:
    """Say whether ``value`` can be optimized: it has ``data`` and ``grad`` and is no bare array."""
    if isinstance(value, Parameter):
        return True
    if isinstance(value, type):  # which has the properties of its instances
        return False
    return not is_array(value) and hasattr(value, "data") and hasattr(value, "grad")


def options(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters of a group."""
    return {key: value for key, value in group.items() if key not in NOT_OPTIONS}


def named(group: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the parameters of a group with their names.

    Raises:
        ValueError: a parameter was added to the list, or taken from it, without its name.
    """
    names, params = group.get("param_names", ()), group["params"]
    if len(names) != len(params):
        raise ValueError(
            f"a parameter group has {len(params)} 'params' but {len(names)} 'param_names': add "
            "parameters with add_param_group(), and remove a name together with its parameter"
        )
    return list(zip(names, params, strict=True))


def require_whole(groups: Any, defaults: Mapping[str, Any]) -> None:
    """Raise if a group was edited, or put in the list by hand, so that something is missing.

    Args:
        groups: the ``param_groups`` of an optimizer.
        defaults: its options; each group has them all.

    Raises:
        TypeError: the list, or a group, was replaced by something else.
        ValueError: a group lacks an option, its parameters or their names.
    """
    if not isinstance(groups, list):
        raise TypeError(f"param_groups must be the list it was, not a {type(groups).__name__}")
    required = defaults.keys()
    for index, group in enumerate(groups):
        if not isinstance(group, dict):
            raise TypeError(f"parameter group {index} must be a dict, not {type(group).__name__}")
        if not (required <= group.keys() and "params" in group and "param_names" in group):
            lacking = {"params", "param_names", *required} - group.keys()
            missing = ", ".join(map(repr, sorted(lacking, key=str)))
            raise ValueError(
                f"parameter group {index} has no {missing}: put back what was deleted, and add "
                "groups with add_param_group()"
            )
        if len(group["params"]) != len(group["param_names"]):
            named(group)


def split(params: Any, required: bool = True) -> tuple[list[Any], list[Any]]:
    """Return the group dicts and the loose parameters that the caller passed: one list is empty.

    Raises:
        TypeError: ``params`` is no ordered collection, or mixes dicts with parameters.
        ValueError: ``params`` is empty, and ``required``.
    """
    items = _ordered(params, "params")
    if not items and required:
        raise ValueError(
            "params is empty: an optimizer needs at least one parameter "
            "(a generator that was already used up is empty too)"
        )
    are_groups = [isinstance(item, Mapping) for item in items]
    if all(are_groups):
        return items, []
    if any(are_groups):
        odd = are_groups.index(not are_groups[0])
        raise TypeError(
            f"params mixes dicts and parameters: element {odd} is a {type(items[odd]).__name__}, "
            f"the first is a {type(items[0]).__name__}; pass all as dicts or all as parameters"
        )
    return [], items


def normalize(group: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a new group dict whose ``params`` is a checked list, beside its ``param_names``.

    Raises:
        TypeError: the group is no dict, or holds something that is no parameter.
        ValueError: ``params`` is missing or empty, or names are missing, mixed or miscounted.
    """
    if not isinstance(group, Mapping):
        raise TypeError(f"a parameter group must be a dict, not {type(group).__name__}")
    if "params" not in group:
        raise ValueError(f"parameter group {index} has no 'params': add the list of its parameters")
    items = _ordered(group["params"], f"'params' of parameter group {index}")
    if not items:
        raise ValueError(
            f"'params' of parameter group {index} is empty: add at least one parameter"
        )
    pairs = [_named(item, position, index) for position, item in enumerate(items)]
    names = _given_names(group, pairs, index)
    unique: dict[int, tuple[str, Any]] = {}
    for name, (_, param) in zip(names, pairs, strict=True):
        if id(param) in unique:
            warn_caller(
                f"parameter {name!r} appears more than once in parameter group {index}: "
                "it is updated once per step; remove the duplicate"
            )
        unique.setdefault(id(param), (name, param))
    return {
        **group,
        "params": [param for _, param in unique.values()],
        "param_names": [name for name, _ in unique.values()],
    }


def is_positional(names: Iterable[str]) -> bool:
    """Say whether a group's names only number its parameters, because none was given a name.

    Example:
        >>> is_positional(["1.0", "1.1"]), is_positional(["conv1.weight"])
        (True, False)
    """
    return all(re.fullmatch(r"\d+\.\d+", name) for name in names)


INSIDE = "lucid_gpu.", "torch."
"""How modules are called whose lines no warning points at."""


def warn_caller(message: str) -> None:
    """Issue a UserWarning that points at the line outside this package that led here.

    PyTorch, which wraps the steps of its optimizers, counts as inside.
    """
    frame, depth = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith(INSIDE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, UserWarning, stacklevel=depth + 1)


def has_parameters(value: object) -> bool:
    """Say whether a value is no parameter but has some, as a module does."""
    return not is_parameter(value) and callable(getattr(value, "parameters", None))


def _ordered(params: Any, what: str) -> list[Any]:
    if has_parameters(params):
        raise TypeError(f"{what} is a {type(params).__name__}: pass its parameters()")
    if is_immutable(params):
        raise TypeError(f"{what} is {IMMUTABLE}")
    if is_parameter(params) or is_array(params):
        raise TypeError(f"{what} is a single {type(params).__name__}: pass a list, [it]")
    if isinstance(params, set | frozenset):
        raise TypeError(f"{what} is a set, which has no deterministic order: pass a list")
    if isinstance(params, Mapping):
        raise TypeError(f"{what} is a dict: pass a list of group dicts, [it], or its values()")
    if isinstance(params, str | bytes) or not isinstance(params, Iterable):
        raise TypeError(
            f"{what} must be an iterable of parameters, (name, parameter) pairs or dicts, "
            f"not {type(params).__name__}"
        )
    return list(params)


def _named(item: Any, position: int, index: int) -> tuple[str | None, Any]:
    """Return a parameter and the name it was given, by its pair or by itself."""
    name, param = None, item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        name, param = item
    if isinstance(param, type):
        raise TypeError(
            f"element {position} of parameter group {index} is the class {param.__name__}: "
            f"pass an instance, {param.__name__}(...)"
        )
    if is_immutable(param) or (is_parameter(param) and is_immutable(param.data)):
        raise TypeError(f"element {position} of parameter group {index} is {IMMUTABLE}")
    if not is_parameter(param):
        remedy = (
            "pass its parameters()"
            if has_parameters(param)
            else "wrap arrays in lucid_gpu.Parameter, or pass an object with data and grad"
        )
        raise TypeError(
            f"element {position} of parameter group {index} is a {type(param).__name__}, which is "
            f"no parameter: {remedy}"
        )
    if name is None and isinstance(param, Parameter):
        name = param.name
    return name, param


def _given_names(
    group: Mapping[str, Any], pairs: list[tuple[str | None, Any]], index: int
) -> list[str]:
    """Return one name per parameter: those given, else ``"group.position"``."""
    given = group.get("param_names") or [name for name, _ in pairs]
    if not isinstance(given, list | tuple) or not all(
        isinstance(name, str | None) for name in given
    ):
        raise TypeError(
            f"'param_names' of parameter group {index} must be a list of strings, not {given!r}"
        )
    if len(given) != len(pairs):
        raise ValueError(
            f"'param_names' of parameter group {index} has {len(given)} names "
            f"for {len(pairs)} parameters: give one each, or none"
        )
    unnamed = [position for position, name in enumerate(given) if name is None]
    if not unnamed:
        return list(given)
    if len(unnamed) < len(given):
        raise ValueError(
            f"parameter group {index} mixes named and unnamed parameters: name element "
            f"{unnamed[0]} too, with a (name, parameter) pair or Parameter(..., name=...), or none"
        )
    return [f"{index}.{position}" for position in range(len(given))]
