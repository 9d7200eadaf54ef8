"""Masters: what lies beside parameters of 16 bits follows their data where others wrote it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lucid_gpu.optim.core import slots as making
from lucid_gpu.optim.core.groups import warn_caller
from lucid_gpu.optim.core.tensors import Tensor

FILLS = {"master": "param"}
"""What the slots of the frame begin with, where that is not 0."""


def known(tensors: Iterable[Tensor]) -> dict[int, tuple[Any, Any]]:
    """Return, for each parameter that is split, its data and the slot that belongs to it."""
    return {
        id(tensor.param): (tensor.data, tensor.slots["master_low"])
        for tensor in tensors
        if tensor.slots is not None and "master_low" in tensor.slots
    }


def is_stale(tensor: Tensor, before: Mapping[int, tuple[Any, Any]]) -> bool:
    """Say whether a parameter was given other values than its master has.

    Args:
        tensor: the parameter with its slots.
        before: what was :func:`known` at the last step.
    """
    slots = tensor.slots or {}
    if slots.get("master") is not None:
        return making.is_stale(slots["master"], tensor.data)
    data, low = before.get(id(tensor.param), (None, None))
    return low is not None and low is slots.get("master_low") and data is not tensor.data


def renew(tensors: Sequence[Tensor]) -> None:
    """Have the masters of tensors made anew whose parameters were given other values."""
    for tensor in tensors:
        for name in tensor.storage.beside if tensor.storage is not None else ():
            (tensor.slots or {})[name] = None
    told = [tensor.name for tensor in tensors if "master" in (tensor.slots or {})]
    if told:
        warn_stale(told)


def follow(tensors: Sequence[Tensor]) -> None:
    """Have what lies beside parameters follow data that was replaced or written by others."""
    stale = []
    for tensor in tensors:
        slots = tensor.slots or {}
        if "master_low" in slots:
            making.fill_slot(slots["master_low"], 0)
        elif "master" in slots and making.is_stale(slots["master"], tensor.data):
            stale.append(tensor)
    if stale:
        warn_stale([tensor.name for tensor in stale])
    for tensor in stale:
        making.fill_slot((tensor.slots or {})["master"], tensor.data)


def warn_stale(names: Sequence[str]) -> None:
    """Warn that parameters were given values that their masters do not have."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    warn_caller(
        f"the data of {', '.join(map(repr, names[:8]))}{more} was replaced or written to, so that "
        "the float32 master kept of it was stale: it was made anew from the data; load the state "
        "that belongs to it with load_state_dict() to keep the exact values"
    )
