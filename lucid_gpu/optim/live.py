"""Live objects among the options, such as model clients: described when saved, never copied.

A description is ``{"class_type": name, **state}`` with the object's own ``state_dict()`` if it
has one. Attributes are never read, so that no secret of a client reaches a state dict.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from lucid_gpu.optim.tree import CopyArray, copy_tree, is_plain

CLASS_TYPE = "class_type"


def describe(option: str, value: Any, copy_array: CopyArray) -> Any:
    """Return a copy of plain data, or the description of a live object."""
    if is_plain(value) or isinstance(value, dict | list | tuple):
        return copy_tree(value, copy_array, f"option {option!r}")
    state = value.state_dict() if hasattr(value, "state_dict") else {}
    own = copy_tree(dict(state), copy_array, f"state_dict() of option {option!r}")
    return {**own, CLASS_TYPE: type(value).__name__}


def is_description(value: Any) -> bool:
    """Say whether a saved option stands for a live object."""
    return isinstance(value, Mapping) and CLASS_TYPE in value


def revive(option: str, saved: Any, clients: Mapping[str, Any], copy_array: CopyArray) -> Any:
    """Return a copy of a saved option, or the client that takes the place of a description.

    Raises:
        ValueError: the client is missing or of another class than the one that was saved.
    """
    if not is_description(saved):
        return copy_tree(saved, copy_array, f"option {option!r}")
    wanted = saved[CLASS_TYPE]
    if option not in clients:
        raise ValueError(
            f"option {option!r} held a {wanted}, a live object that is not saved: pass one with "
            f"load_state_dict(..., model_clients={{{option!r}: <{wanted} instance>}})"
        )
    found = type(clients[option]).__name__
    if found != wanted:
        raise ValueError(
            f"model_clients[{option!r}] is a {found}, but option {option!r} held a {wanted}: "
            f"pass an instance of {wanted}"
        )
    return clients[option]


def install(groups: list[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Hand each client its saved state; if one refuses, the others get back what they had.

    Args:
        groups: pairs of revived options and the saved options they came from.
    """
    undo: list[tuple[Any, Any]] = []
    try:
        for options, saved in groups:
            for option, description in saved.items():
                if not is_description(description):
                    continue
                client = options[option]
                if hasattr(client, "load_state_dict"):
                    state = {key: value for key, value in description.items() if key != CLASS_TYPE}
                    undo.append((client, copy.deepcopy(client.state_dict())))
                    client.load_state_dict(copy.deepcopy(state))
    except BaseException:
        for client, before in reversed(undo):
            client.load_state_dict(before)
        raise
