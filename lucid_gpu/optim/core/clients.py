"""Live objects among the options, such as model clients: described when saved, never copied.

A description is ``{"class_type": name, **state}`` with the object's own ``state_dict()`` if it
has one. Attributes are never read, so that no secret of a client reaches a state dict.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from lucid_gpu.optim.core.tree import CopyArray, check_depth, copy_tree, is_plain

CLASS_TYPE = "class_type"


def is_live(value: object) -> bool:
    """Say whether an option is neither plain data nor a list, tuple or dict."""
    return not is_plain(value) and type(value) not in (dict, list, tuple)


def describe(option: str, value: Any, copy_array: CopyArray) -> Any:
    """Return a copy of plain data, or the description of a live object.

    Raises:
        TypeError: a live object lies inside a list, tuple or dict, or its state is no plain data.
        ValueError: ``"class_type"``, the mark of a description, is a key of something else.
    """
    if not is_live(value):
        _refuse_mark(value, f"option {option!r}")
        return copy_tree(value, copy_array, f"option {option!r}")
    path = f"state_dict() of option {option!r}"
    state = value.state_dict() if _can(value, "state_dict") else {}
    if not isinstance(state, Mapping):
        raise TypeError(
            f"{path} is a {type(state).__name__}: a {type(value).__name__} must "
            "return a dict of its state"
        )
    _refuse_mark(state, path)
    return {CLASS_TYPE: type(value).__name__, **copy_tree(dict(state), copy_array, path)}


def is_description(value: Any) -> bool:
    """Say whether a saved option stands for a live object."""
    return isinstance(value, Mapping) and CLASS_TYPE in value


def client_problems(
    option: str, description: Mapping[str, Any], clients: Mapping[str, Any]
) -> list[str]:
    """Return, in words, why no client can take the place of a description."""
    wanted = description[CLASS_TYPE]
    if option not in clients:
        return [
            f"option {option!r} held a {wanted}, a live object that is not saved: pass one with "
            f"load_state_dict(..., model_clients={{{option!r}: <{wanted} instance>}})"
        ]
    found = type(clients[option]).__name__
    if found != wanted:
        return [
            f"model_clients[{option!r}] is a {found}, but option {option!r} held a {wanted}: "
            f"pass an instance of {wanted}"
        ]
    return []


def install(clients: Sequence[tuple[Any, Mapping[str, Any]]]) -> None:
    """Hand each client its saved state; if one refuses, all get back what they had.

    Args:
        clients: pairs of a client and the description that it takes the place of.
    """
    undo: list[tuple[Any, Any]] = []
    try:
        for client, description in clients:
            if _can(client, "state_dict") and _can(client, "load_state_dict"):
                before = client.state_dict()
                check_depth(before, f"state_dict() of a {type(client).__name__}")
                undo.append((client, copy.deepcopy(before)))
                state = {key: value for key, value in description.items() if key != CLASS_TYPE}
                client.load_state_dict(copy.deepcopy(state))
    except BaseException:
        for client, before in reversed(undo):
            client.load_state_dict(before)
        raise


def _can(value: Any, method: str) -> bool:
    return callable(getattr(value, method, None))


def _refuse_mark(value: Any, path: str) -> None:
    if is_description(value):
        raise ValueError(
            f"{path} has the key {CLASS_TYPE!r}, which marks a live object in a state dict: "
            "rename the key"
        )
