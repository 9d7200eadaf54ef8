"""State dicts of ``torch.optim``: how PyTorch writes what is written here otherwise.

Step counts and other numbers of a state are tensors there. What only one class writes otherwise,
that class declares.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_gpu.device import torch_tensors
from lucid_gpu.device.arrays import as_array
from lucid_gpu.execution.rule import BESIDE, BFLOAT16
from lucid_gpu.optim.core.groups import CLASS, is_positional
from lucid_gpu.optim.core.slots import cast
from lucid_gpu.optim.core.tree import copy_tree

_EXECUTION = ("foreach", "fused", "capturable", "differentiable")
"""Options of PyTorch that say how a step runs, not what it computes."""

_OWN = ("master", "state_dtype", "seed", "telemetry")
"""Options of this package that say what arrays are stored as, and what is told of a step."""

_MASTERS = tuple(name for own in BESIDE.values() for name in own)
"""Slots of this package for which PyTorch has no place."""


@dataclass(frozen=True)
class Counterpart:
    """What PyTorch's class of the same name writes otherwise in its state dicts.

    Attributes:
        lacks: options that it has not. Where they are False, they are left out.
        spelled: for each option that is True or False there and more here, which of the two it
            calls a value here; a value that is not among them it cannot express.
        keeps_step: whether it counts steps.
        worked_out: slots of its own, each a function of the options and of the number of the next
            step.
        options: makes of the options of a group here those that it has; it raises ValueError if
            there are none that compute the same.
        slots: makes of the slots of a parameter here, tensors already, those that it has.
    """

    lacks: tuple[str, ...] = ()
    spelled: Mapping[str, Mapping[Any, bool]] = field(default_factory=dict)
    keeps_step: bool = True
    worked_out: Mapping[str, Callable[[Mapping[str, Any], int], float]] = field(
        default_factory=dict
    )
    options: Callable[[dict[str, Any]], dict[str, Any]] = dict
    slots: Callable[[dict[str, Any]], dict[str, Any]] = dict


_counterparts: dict[str, Counterpart] = {}
"""By the names of classes, which are all that a state dict knows of them."""


def note_counterpart(name: str, counterpart: Counterpart) -> None:
    """Note what the class of a name declares; the first one counts."""
    _counterparts.setdefault(name, counterpart)


def is_pytorch(state_dict: Mapping[str, Any]) -> bool:
    """Say whether ``torch.optim``, or a class like its own, wrote this."""
    has_tensors = any(
        torch_tensors.is_tensor(value)
        for slots in state_dict["state"].values()
        for value in slots.values()
    )
    return has_tensors or any(
        CLASS not in group and key in group
        for group in state_dict["param_groups"]
        for key in _EXECUTION
    )


def translate(
    state_dict: Mapping[str, Any], counterpart: Counterpart, numbers: Collection[str]
) -> dict[str, Any]:
    """Return a state dict of ``torch.optim`` as an optimizer of this package would write it.

    Where PyTorch keeps no step count, it becomes 1 if there is any slot, so that the next step is
    not taken for the first.

    Args:
        state_dict: as PyTorch wrote it.
        counterpart: what it writes otherwise than the class that loads it.
        numbers: the slots of that class which hold one number, not one for each element.
    """
    return {
        "state": {
            key: _slots(slots, counterpart, numbers) for key, slots in state_dict["state"].items()
        },
        "param_groups": [_group(group, counterpart) for group in state_dict["param_groups"]],
    }


def export(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict of an optimizer of this package as ``torch.optim`` would write it.

    Needs PyTorch. The arrays are copied to tensors on their device.

    Args:
        state_dict: of an optimizer whose name ``torch.optim`` has too, such as
            :class:`~lucid_gpu.optim.Adam`.

    Returns:
        What ``load_state_dict`` of the ``torch.optim`` class of that name takes.

    Raises:
        TypeError: it is no state dict.
        ValueError: a group computes what PyTorch cannot: ``amsgrad=True`` (its own is ``"raw"``),
            SGD's ``dampen_first``, decoupled decay in SGD, RMSprop's ``eps_inside_sqrt``, or Muon's
            groups of kind ``"adamw"``.

    Example:
        >>> def hand_over(ours, theirs):
        ...     theirs.load_state_dict(export(ours.state_dict()))
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"state_dict must be a dict, not a {type(state_dict).__name__}: "
            "pass optimizer.state_dict()"
        )
    groups = {
        saved_id: group for group in state_dict["param_groups"] for saved_id in group["params"]
    }
    return {
        "state": {
            key: _torch_slots(slots, groups[key]) for key, slots in state_dict["state"].items()
        },
        "param_groups": [_torch_group(group) for group in state_dict["param_groups"]],
    }


def _slots(
    slots: Mapping[str, Any], counterpart: Counterpart, numbers: Collection[str]
) -> dict[str, Any]:
    kept = {
        name: _number(value) if name in numbers else _array(value)
        for name, value in slots.items()
        if value is not None and name not in counterpart.worked_out
    }
    if not kept:
        return {}
    return {"step": _count(kept.pop("step", 1)), **kept}


def _count(step: Any) -> Any:
    """Return a step count as an int; what is none stays, for the restore to refuse."""
    try:
        return int(step) if int(step) == step else step
    except (TypeError, ValueError, OverflowError):
        return step


def _group(group: Mapping[str, Any], counterpart: Counterpart) -> dict[str, Any]:
    options = {key: _number(value) for key, value in group.items() if key not in _EXECUTION}
    for option, names in counterpart.spelled.items():
        values = {name: value for value, name in names.items()}
        if type(options.get(option)) is bool:
            options[option] = values[options[option]]
    return options


def _array(value: Any) -> Any:
    if isinstance(value, list):
        return [_array(item) for item in value]
    array = as_array(value)
    return value if array is None else array


def _number(value: Any) -> Any:
    """Return as numbers what PyTorch holds as tensors, a learning rate, say."""
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    array = as_array(value)
    return value if array is None or array.size != 1 else array.item()


def _torch_slots(slots: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    torch = importlib.import_module("torch")
    counterpart = _counterpart(group)

    def tensor(array: Any) -> Any:
        is_brief = array.dtype == BFLOAT16  # NumPy hands none over
        return torch.from_dlpack(cast(array, np.dtype(np.float32)) if is_brief else array).clone()

    def number(value: float) -> Any:
        return torch.tensor(value, dtype=torch.float64)  # PyTorch takes the parameter's when loaded

    result = {
        name: number(value) if isinstance(value, float) else copy_tree(value, tensor, name)
        for name, value in slots.items()
        if name != "step" and name not in _MASTERS
    }
    if counterpart.keeps_step:
        result["step"] = torch.tensor(float(slots["step"]))
    for name, work_out in counterpart.worked_out.items():
        result[name] = number(work_out(group, slots["step"] + 1))
    return counterpart.slots(result)


def _torch_group(group: Mapping[str, Any]) -> dict[str, Any]:
    options = {key: value for key, value in group.items() if key not in (CLASS, *_OWN)}
    counterpart = _counterpart(group)
    for option, names in counterpart.spelled.items():
        if option not in options:
            continue
        if options[option] not in names:
            other = " or ".join(f"{option}={value!r}" for value in names)
            raise ValueError(
                f"{option}={options[option]!r} is not what PyTorch computes: "
                f"only {other} can be exported"
            )
        options[option] = names[options[option]]
    lacks = (*counterpart.lacks, "max_norm", "skip_nonfinite")
    used = [option for option in lacks if options.pop(option, False)]
    if not options.get("weight_decay"):
        used = [option for option in used if option != "decoupled_weight_decay"]
    if used:
        raise ValueError(
            f"{' and '.join(used)} of {group[CLASS]} cannot be exported, because PyTorch has no "
            "such option: only a group in which it is off can"
        )
    if is_positional(options.get("param_names", ())):
        options.pop("param_names", None)
    return counterpart.options(options)


def _counterpart(group: Mapping[str, Any]) -> Counterpart:
    return _counterparts.get(group.get(CLASS, ""), Counterpart())
