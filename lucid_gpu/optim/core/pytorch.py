"""State dicts of ``torch.optim``: how PyTorch writes what is written here otherwise.

Step counts are tensors there and ints here, and SGD keeps none. PyTorch's AMSGrad takes the
maximum ahead of the bias correction, which is ``amsgrad="raw"`` here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from lucid_gpu.device.arrays import as_array
from lucid_gpu.optim.core.groups import CLASS, is_positional
from lucid_gpu.optim.core.tree import copy_tree

_EXECUTION = ("foreach", "fused", "capturable", "differentiable")
"""Options of PyTorch that say how a step runs, not what it computes."""


def is_pytorch(state_dict: Mapping[str, Any]) -> bool:
    """Say whether ``torch.optim`` wrote this."""
    return any(
        CLASS not in group and key in group
        for group in state_dict["param_groups"]
        for key in _EXECUTION
    )


def translate(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of ``torch.optim`` as an optimizer of this package would write it.

    SGD's step count becomes 1 where there is a momentum buffer, so that the next step is not
    taken for the first.
    """
    return {
        "state": {key: _slots(slots) for key, slots in state_dict["state"].items()},
        "param_groups": [_group(group) for group in state_dict["param_groups"]],
    }


def export(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of an optimizer of this package as ``torch.optim`` would write it.

    Needs PyTorch. The arrays are copied to tensors on their device.

    Args:
        state_dict: of an :class:`~lucid_gpu.optim.Adam`, :class:`~lucid_gpu.optim.AdamW` or
            :class:`~lucid_gpu.optim.SGD`.

    Returns:
        What ``load_state_dict`` of the ``torch.optim`` class of that name takes.

    Raises:
        ValueError: a group computes what PyTorch cannot: ``amsgrad=True`` (its own is ``"raw"``),
            SGD's ``dampen_first``, or decoupled decay in SGD.

    Example:
        >>> def hand_over(ours, theirs):
        ...     theirs.load_state_dict(export(ours.state_dict()))
    """
    classes = {
        saved_id: group.get(CLASS)
        for group in state_dict["param_groups"]
        for saved_id in group["params"]
    }
    return {
        "state": {
            key: _torch_slots(slots, keeps_step=classes[key] != "SGD")
            for key, slots in state_dict["state"].items()
        },
        "param_groups": [_torch_group(group) for group in state_dict["param_groups"]],
    }


def _slots(slots: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {name: _array(value) for name, value in slots.items() if value is not None}
    if not arrays:
        return {}
    return {"step": _count(arrays.pop("step", 1)), **arrays}


def _count(step: Any) -> Any:
    """Return a step count as an int; what is none stays, for the restore to refuse."""
    try:
        return int(step) if int(step) == step else step
    except (TypeError, ValueError, OverflowError):
        return step


def _group(group: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: _number(value) for key, value in group.items() if key not in _EXECUTION}
    if options.get("amsgrad") is True:
        options["amsgrad"] = "raw"
    return options


def _array(value: Any) -> Any:
    array = as_array(value)
    return value if array is None else array


def _number(value: Any) -> Any:
    """Return an option as numbers where PyTorch holds it as tensors, a learning rate, say."""
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    array = as_array(value)
    return value if array is None else array.item()


def _torch_slots(slots: Mapping[str, Any], keeps_step: bool) -> dict[str, Any]:
    torch = importlib.import_module("torch")

    def tensor(array: Any) -> Any:
        return torch.from_dlpack(array).clone()

    result = {
        name: copy_tree(value, tensor, name) for name, value in slots.items() if name != "step"
    }
    if keeps_step:
        result["step"] = torch.tensor(float(slots["step"]))
    return result


def _torch_group(group: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in group.items() if key != CLASS}
    if options.get("amsgrad") is True:
        raise ValueError(
            "amsgrad=True keeps the largest bias-corrected moment, which PyTorch does not: "
            "only amsgrad='raw' can be exported"
        )
    if "amsgrad" in options:
        options["amsgrad"] = options["amsgrad"] == "raw"
    if group.get(CLASS) == "SGD":
        is_decoupled = options.pop("decoupled_weight_decay") and options["weight_decay"]
        if options.pop("dampen_first") or is_decoupled:
            raise ValueError(
                "dampen_first and decoupled weight decay of SGD are unknown to PyTorch: "
                "only SGD without them can be exported"
            )
    if is_positional(options.get("param_names", ())):
        options.pop("param_names", None)
    return options
