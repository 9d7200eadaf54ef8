"""States of Lucid 1.20.0: how it writes what is written here otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lucid_gpu.optim.core.groups import CLASS

SLOTS: dict[str, dict[str, str]] = {
    "SGD": {},
    "Adam": {},
    "AdamW": {},
    "Adamax": {},
    "Adagrad": {"sum_sq_grad": "sum"},
    "Adadelta": {"sq_avg": "square_avg", "accumulated_update": "acc_delta"},
    "RMSprop": {},
    "Rprop": {"prev_grad": "prev"},
}
"""For each class, the slots that it calls otherwise."""

OPTIONS: dict[str, dict[str, Any]] = {"RMSprop": {"eps_inside_sqrt": True}}
"""What its classes do without an option for it."""

OTHERS = {
    "NAdam": "it has no schedule of momenta, decays the first moment and corrects its bias twice",
    "RAdam": "its rectified rate lacks a division by ρ under the root",
    "ASGD": "it is SGD whose average moves by other weights, and with a decay of its own",
}
"""Classes that compute something else than those of the same name here, and what."""


def translate(source: Any, algorithm: str | None = None) -> dict[str, Any]:
    """Return the state of an optimizer of Lucid 1.20.0 as a state dict of this package.

    Of ``SGD``, ``Adam``, ``AdamW``, ``Adamax``, ``Adagrad``, ``Adadelta``, ``RMSprop`` and
    ``Rprop``, with their options. Parameters stand in the order of the groups and have no names.

    A run goes on as it would have there, but for where ε is added: ahead of the bias correction in
    ``Adam`` and ``AdamW`` there, and not within the maximum of ``Adamax``. Lucid forgets the
    maximum of ``amsgrad``, which begins anew. Its ``SGD`` counts no steps; where there is a
    momentum buffer, ``step`` is 1, so that the next one is not taken for the first.

    Args:
        source: the optimizer, or what its ``state_dict()`` returned. Such a dict holds two copies
            of each parameter, one with the state and one in its group, which are told by their
            values. Arrays are not copied before they are loaded.
        algorithm: the class that wrote a state dict, which does not name it: ``"Adam"``.

    Returns:
        What ``load_state_dict`` of the class of that name takes.

    Raises:
        TypeError: ``source`` is neither, or a state dict without ``algorithm``.
        ValueError: the class is none of these: ``NAdam``, ``RAdam`` and ``ASGD`` of Lucid are other
            algorithms than those here. Or there is state of a parameter that no group holds.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter, optim
        >>> class Adagrad:  # as that of lucid.optim
        ...     def __init__(self, params):
        ...         slots = {"step": 2, "sum_sq_grad": np.float32([0.5])}
        ...         self.param_groups, self.state = [{"params": params}], {params[0]: slots}
        >>> w = Parameter([1.0])
        >>> optimizer = optim.Adagrad([w])
        >>> optimizer.load_state_dict(translate(Adagrad([w])))
        >>> optimizer.state[w]["sum"].tolist()
        [0.5]
    """
    if isinstance(source, Mapping):
        if algorithm is None:
            raise TypeError("a state dict of Lucid names no class: pass it, translate(…, 'Adam')")
        parts = source
    else:
        algorithm = type(source).__name__ if algorithm is None else algorithm
        parts = getattr(source, "__dict__", {})
    state, groups = parts.get("state"), parts.get("param_groups")
    defaults = parts.get("defaults", {})
    if not isinstance(state, Mapping) or not isinstance(groups, list):
        raise TypeError(
            f"source must be an optimizer of Lucid or its state dict, not a {type(source).__name__}"
        )
    _require_known(algorithm)
    left = list(state.items())
    slots: dict[int, dict[str, Any]] = {}
    translated: list[dict[str, Any]] = []
    count = 0
    for group in groups:
        ids = list(range(count, count + len(group["params"])))
        count += len(ids)
        for saved_id, param in zip(ids, group["params"], strict=True):
            own = _taken(left, param)
            if own:
                names = SLOTS[algorithm]
                renamed = {names.get(name, name): value for name, value in own.items()}
                slots[saved_id] = {"step": 1, **renamed}
        options = {**defaults, **group, **OPTIONS.get(algorithm, {})}
        translated.append({**options, "params": ids, CLASS: algorithm})
    if left:
        raise ValueError(
            f"there is state of {len(left)} parameters that no group holds: take the state dict "
            "while its optimizer is as it steps"
        )
    return {"state": slots, "param_groups": translated}


def _require_known(algorithm: str) -> None:
    if algorithm in OTHERS:
        raise ValueError(
            f"{algorithm} of Lucid is another algorithm than {algorithm} here: "
            f"{OTHERS[algorithm]}; begin anew"
        )
    if algorithm not in SLOTS:
        raise ValueError(f"algorithm must be one of {', '.join(SLOTS)}, not {algorithm!r}")


def _taken(left: list[tuple[Any, Any]], param: Any) -> Mapping[str, Any]:
    """Take from what is left the state of a parameter, or of the first one with its values."""
    for position, (key, _) in enumerate(left):
        if key is param:
            return dict(left.pop(position)[1])
    data = np.asarray(param.data)
    for position, (key, _) in enumerate(left):
        other = np.asarray(key.data)
        if other.shape == data.shape and other.tobytes() == data.tobytes():
            return dict(left.pop(position)[1])
    return {}
