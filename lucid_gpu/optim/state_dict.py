"""State dicts: a snapshot of an optimizer, and an all-or-nothing restore from one.

A restore has two halves. The first reads, checks and copies, and may raise at any point; it
changes nothing. The second only exchanges references and cannot fail.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lucid_gpu import device as _device
from lucid_gpu.optim import groups as _groups
from lucid_gpu.optim import live, pytorch
from lucid_gpu.optim.matching import Match, match_groups
from lucid_gpu.optim.tree import copy_tree

if TYPE_CHECKING:
    from lucid_gpu.optim.optimizer import Optimizer

CLASS = "optimizer_class"
"""The key of a saved group that names the class of the optimizer."""


def snapshot(optimizer: Optimizer, device: str | None) -> dict[str, Any]:
    """Return a copy of state and options that shares nothing with the optimizer."""

    def copy_array(array: Any) -> Any:
        return _device.copy(array, device or _device.of(array))

    state: dict[int, dict[str, Any]] = {}
    saved_groups: list[dict[str, Any]] = []
    next_id = 0
    for group in optimizer.param_groups:
        ids = list(range(next_id, next_id + len(group["params"])))
        next_id += len(ids)
        for saved_id, param, name in zip(ids, group["params"], group["param_names"], strict=True):
            slots = optimizer.state.get(param)
            if slots:
                state[saved_id] = {
                    slot: copy_tree(value, copy_array, f"state of {name!r}[{slot!r}]")
                    for slot, value in slots.items()
                }
        options = {
            key: live.describe(key, value, copy_array)
            for key, value in _groups.options(group).items()
        }
        names = list(group["param_names"])
        own = {CLASS: type(optimizer).__name__, "params": ids, "param_names": names}
        saved_groups.append({**options, **own})
    return {"state": state, "param_groups": saved_groups}


@dataclass
class Restored:
    """What the first half of a restore prepared for one group."""

    group: dict[str, Any]
    options: dict[str, Any]
    slots: list[tuple[Any, dict[str, Any]]]


def restore(
    optimizer: Optimizer,
    state_dict: Mapping[str, Any],
    strict: bool,
    model_clients: Mapping[str, Any],
) -> None:
    """Load ``state_dict`` into ``optimizer``, or raise and leave it as it was."""
    _check_form(state_dict)
    if pytorch.is_pytorch(state_dict):
        state_dict = pytorch.translate(state_dict)
    problems = _class_problems(optimizer, state_dict)
    matches = match_groups(optimizer.param_groups, state_dict["param_groups"], problems)
    prepared = [
        _prepare(optimizer, match, state_dict["state"], model_clients, problems)
        for match in matches
    ]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        if strict:
            raise ValueError(
                f"the state dict does not match this {type(optimizer).__name__}; nothing was "
                f"loaded (strict=False loads what fits):{listed}"
            )
        warnings.warn(f"these parts of the state dict were not loaded:{listed}", stacklevel=3)
    live.install(
        [(each.options, match.saved) for each, match in zip(prepared, matches, strict=True)]
    )
    for each in prepared:
        each.group.update(each.options)
        for param, slots in each.slots:
            if slots:
                optimizer.state[param] = slots
            elif param in optimizer.state:
                del optimizer.state[param]


def _check_form(state_dict: Any) -> None:
    """Raise unless this is a state dict, whatever optimizer it is of."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a dict, not {type(state_dict).__name__}")
    for key, kind in (("state", Mapping), ("param_groups", list | tuple)):
        if key not in state_dict:
            raise KeyError(f"state_dict has no {key!r}; it has {sorted(map(str, state_dict))}")
        if not isinstance(state_dict[key], kind):
            raise TypeError(f"state_dict[{key!r}] must not be a {type(state_dict[key]).__name__}")
    ids = _checked_ids(state_dict["param_groups"])
    for saved_id, slots in state_dict["state"].items():
        if saved_id not in ids:
            raise ValueError(f"state_dict['state'] has id {saved_id!r}, which no group holds")
        if not isinstance(slots, Mapping):
            raise TypeError(
                f"state_dict['state'][{saved_id!r}] must be a dict, not {type(slots).__name__}"
            )


def _checked_ids(saved_groups: Any) -> set[Any]:
    """Return the ids that the groups hold, or raise unless they are well formed."""
    ids: set[Any] = set()
    for index, group in enumerate(saved_groups):
        where = f"state_dict['param_groups'][{index}]"
        if not isinstance(group, Mapping):
            raise TypeError(f"{where} must be a dict, not {type(group).__name__}")
        if "params" not in group:
            raise KeyError(f"{where} has no 'params'; it has {sorted(map(str, group))}")
        params = group["params"]
        if not isinstance(params, list | tuple) or not all(
            isinstance(i, int | str) for i in params
        ):
            raise TypeError(f"{where}['params'] must be a list of ids, not {params!r}")
        names = group.get("param_names", params)
        if not isinstance(names, list | tuple) or len(names) != len(params):
            raise ValueError(f"{where}['param_names'] must be a list of {len(params)} names")
        twice = [i for i in params if i in ids or params.count(i) > 1]
        if twice:
            raise ValueError(f"{where}['params'] holds id {twice[0]!r}, which stands there already")
        ids.update(params)
    return ids


def _class_problems(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> list[str]:
    own = type(optimizer).__name__
    saved = {group[CLASS] for group in state_dict["param_groups"] if CLASS in group}
    return [f"it was saved by {name}, this is {own}" for name in sorted(map(str, saved - {own}))]


def _prepare(
    optimizer: Optimizer,
    match: Match,
    state: Mapping[Any, Mapping[str, Any]],
    model_clients: Mapping[str, Any],
    problems: list[str],
) -> Restored:
    """Copy what one group will get, and note what does not fit."""
    options = _groups.options(match.group)
    for key, value in _groups.options(match.saved).items():
        if key != CLASS:
            options[key] = live.revive(key, value, model_clients, _keep_home)
    try:
        optimizer.check_options(options)
    except (TypeError, ValueError) as error:
        problems.append(f"group {match.index}: {error}")
        options = _groups.options(match.group)
    slots = []
    for param, name, saved_id in match.pairs:
        saved = state.get(saved_id, {})
        wrong = optimizer.slot_problems(param, saved, options) if saved else []
        problems += [f"{name!r}: {problem}" for problem in wrong]
        if not wrong:
            slots.append((param, _copy_slots(param, name, saved)))
    return Restored(match.group, options, slots)


def _keep_home(array: Any) -> Any:
    return _device.copy(array, _device.of(array))


def _copy_slots(param: Any, name: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    home = _device.of(param.data)
    return {
        slot: copy_tree(
            value, lambda array: _device.copy(array, home), f"state of {name!r}[{slot!r}]"
        )
        for slot, value in saved.items()
    }
