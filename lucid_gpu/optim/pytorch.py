"""State dicts of ``torch.optim``: how PyTorch writes what is written here otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lucid_gpu import device

_EXECUTION = ("foreach", "fused", "capturable", "differentiable")
"""Options of PyTorch that say how a step runs, not what it computes."""


def is_pytorch(state_dict: Mapping[str, Any]) -> bool:
    """Say whether ``torch.optim`` wrote this."""
    return any(key in group for group in state_dict["param_groups"] for key in _EXECUTION)


def translate(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict as an optimizer of this package would have written it.

    Step counts become ints. SGD's, which PyTorch does not keep, becomes 1 where there is a
    momentum buffer, so that the next step is not taken for the first. ``amsgrad=True`` becomes
    ``"raw"``, since PyTorch takes the maximum ahead of the bias correction.
    """
    return {
        "state": {key: _slots(slots) for key, slots in state_dict["state"].items()},
        "param_groups": [_group(group) for group in state_dict["param_groups"]],
    }


def _slots(slots: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {name: _array(value) for name, value in slots.items() if value is not None}
    if not arrays:
        return {}
    step = arrays.pop("step", 1)
    return {"step": int(step), **arrays}


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: _number(value) for key, value in group.items() if key not in _EXECUTION}
    if options.get("amsgrad") is True:
        options["amsgrad"] = "raw"
    return options


def _array(value: Any) -> Any:
    array = device.as_array(value)
    return value if array is None else array


def _number(value: Any) -> Any:
    """Return an option as a number where PyTorch holds it as a tensor, a learning rate, say."""
    array = device.as_array(value)
    return value if array is None else array.item()
