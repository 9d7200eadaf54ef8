"""States of ``optax``: how it writes what is written here otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lucid_gpu.device.arrays import as_array

SLOTS: dict[str, dict[str, str]] = {
    "ScaleByAdamState": {"mu": "exp_avg", "nu": "exp_avg_sq"},
    "ScaleByAmsgradState": {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
    "ScaleByLionState": {"mu": "exp_avg"},
    "TraceState": {"trace": "momentum_buffer"},
}
"""For each state of optax, the slot that each of its trees is."""

OPTIONS: dict[str, dict[str, Any]] = {"ScaleByAmsgradState": {"amsgrad": True}}
"""Options that follow from the kind of a state."""


def translate(state: Any) -> dict[str, Any]:
    """Return the state of an optax optimizer as a state dict of this package, to be loaded.

    Of ``adam``, ``adamw``, ``amsgrad``, ``lion``, and ``sgd`` with momentum, in ``chain`` and
    whatever else wraps them. Parameters are named by their path, ``"dense.kernel"``, and stand in
    the order in which JAX flattens them: dicts by their keys. Options stay as they are, since a
    state of optax has none.

    Args:
        state: what ``init`` or ``update`` returned. Its arrays are not copied before they are
            loaded.

    Returns:
        What ``load_state_dict`` takes. Where optax keeps no count, ``step`` is 1, so that the next
        step is not taken for the first.

    Raises:
        ValueError: it has no such state, or more than one.

    Example:
        >>> import numpy as np
        >>> from collections import namedtuple
        >>> from lucid_gpu import Parameter, optim
        >>> TraceState = namedtuple("TraceState", "trace")  # as optax.sgd(0.1, 0.9) makes it
        >>> state = (TraceState({"b": np.float32([0.5]), "w": np.float32([1.0, 2.0])}), ())
        >>> optimizer = optim.SGD([Parameter([0.0]), Parameter([0.0, 0.0])], momentum=0.9)
        >>> optimizer.load_state_dict(translate(state))
        >>> [slots["momentum_buffer"].tolist() for slots in optimizer.state.values()]
        [[0.5], [1.0, 2.0]]
    """
    found = list(_states(state))
    if len(found) != 1:
        kinds = ", ".join(type(each).__name__ for each in found) or "none"
        raise ValueError(
            f"the state must hold one of {', '.join(SLOTS)}; it holds {kinds}: translate the state "
            "of one optimizer, of adam, adamw, amsgrad, lion or sgd with momentum"
        )
    (own,) = found
    kind = type(own).__name__
    count = int(own.count) if "count" in own._fields else 1  # tuples have a method of that name
    trees = {slot: dict(_leaves(getattr(own, tree))) for tree, slot in SLOTS[kind].items()}
    names = list(next(iter(trees.values())))
    slots = [
        {"step": count, **{slot: tree[name] for slot, tree in trees.items()}} for name in names
    ]
    group = {**OPTIONS.get(kind, {}), "params": list(range(len(names))), "param_names": names}
    return {"state": dict(enumerate(slots)), "param_groups": [group]}


def _states(state: Any) -> Iterator[Any]:
    """Yield the states, inside others, that hold a tree for each parameter."""
    if type(state).__name__ in SLOTS:
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _states(value)
    elif isinstance(state, tuple | list):
        for value in state:
            yield from _states(value)


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the arrays of a tree with their paths, in the order of JAX."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from _leaves(tree[key], (*path, str(key)))
    elif isinstance(tree, tuple | list):
        keys = getattr(tree, "_fields", range(len(tree)))
        for key, value in zip(keys, tree, strict=True):
            yield from _leaves(value, (*path, str(key)))
    elif tree is not None:
        yield ".".join(path) or "0", as_array(tree)
