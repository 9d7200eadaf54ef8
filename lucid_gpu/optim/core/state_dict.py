"""State dicts: a snapshot of an optimizer, and an all-or-nothing restore from one.

A restore has two halves. The first reads, checks and copies, and may raise at any point; it
changes nothing. The second only exchanges references and cannot fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np

from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.optim.core import clients, pytorch
from lucid_gpu.optim.core import groups as _groups
from lucid_gpu.optim.core.checks import python_numbers
from lucid_gpu.optim.core.matching import Match, match_groups
from lucid_gpu.optim.core.slots import copy_apart
from lucid_gpu.optim.core.state import State
from lucid_gpu.optim.core.tensors import Declared
from lucid_gpu.optim.core.tree import check_depth, copy_tree, is_plain


class Optimizer(Protocol):
    """What a state dict is taken of and loaded into."""

    param_groups: list[dict[str, Any]]
    state: State
    counterpart: ClassVar[pytorch.Counterpart]

    def declared_slots(self) -> dict[str, Declared] | None:
        """Return the slots that the state of a parameter may have; None if that is unknown."""
        ...

    def require_valid(self, options: Mapping[str, Any]) -> None:
        """Raise if an option is out of bounds."""
        ...

    def param_problems(self, data: Any, options: Mapping[str, Any]) -> list[str]:
        """Return, in words, why a parameter cannot be trained with some options."""
        ...

    def slot_problems(self, param: Any, slots: Mapping[str, Any]) -> list[str]:
        """Return, in words, why slots cannot be loaded as the state of a parameter."""
        ...

    def home_of_state(self, param: Any) -> str:
        """Return the device on which the state of a parameter belongs."""
        ...


def snapshot(optimizer: Optimizer, device: str | None, copy: bool) -> dict[str, Any]:
    """Return state and options; a copy shares nothing with the optimizer."""

    def copy_array(array: Any) -> Any:
        bring = transfer.copy if copy else transfer.to
        return bring(array, device or device_of(array))

    state: dict[int, dict[str, Any]] = {}
    saved_groups: list[dict[str, Any]] = []
    next_id = 0
    for group in optimizer.param_groups:
        ids = list(range(next_id, next_id + len(group["params"])))
        next_id += len(ids)
        for saved_id, (name, param) in zip(ids, _groups.named(group), strict=True):
            slots = optimizer.state.get(param)
            if slots:
                state[saved_id] = {
                    slot: copy_tree(value, copy_array, f"state of {name!r}[{slot!r}]")
                    for slot, value in slots.items()
                }
        options = {
            key: clients.describe(key, value, copy_array)
            for key, value in _groups.options(group).items()
        }
        names = list(group["param_names"])
        own = {_groups.CLASS: type(optimizer).__name__, "params": ids, "param_names": names}
        saved_groups.append({**options, **own})
    return {"state": state, "param_groups": saved_groups}


@dataclass
class Report:
    """What speaks against a restore.

    Attributes:
        problems: mismatches, which ``strict=False`` passes over.
        refusals: what no restore can do without.
    """

    problems: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def settle(self, optimizer: Optimizer, strict: bool) -> None:
        """Raise if the restore cannot go on; warn if it goes on without some parts."""
        listed = "".join(f"\n  - {text}" for text in (*self.refusals, *self.problems))
        if self.refusals or (self.problems and strict):
            remedy = "" if self.refusals else " (strict=False loads what fits)"
            raise ValueError(
                f"the state dict does not match this {type(optimizer).__name__}; nothing was "
                f"loaded{remedy}:{listed}"
            )
        if listed:
            _groups.warn_caller(f"these parts of the state dict were not loaded:{listed}")


@dataclass
class Restored:
    """What the first half of a restore prepared for one group."""

    group: dict[str, Any]
    options: dict[str, Any]
    clients: list[tuple[Any, Mapping[str, Any]]]
    slots: list[tuple[Any, dict[str, Any]]]


def restore(
    optimizer: Optimizer,
    state_dict: Mapping[str, Any],
    strict: bool,
    model_clients: Mapping[str, Any],
    keep: bool = True,
) -> None:
    """Load ``state_dict`` into ``optimizer``, or raise and leave it as it was."""
    _check_form(state_dict)
    if pytorch.is_pytorch(state_dict):
        numbers = [
            name
            for name, slot in (optimizer.declared_slots() or {}).items()
            if slot.kind == "number"
        ]
        state_dict = pytorch.translate(state_dict, optimizer.counterpart, numbers)
    report = Report(_class_problems(optimizer, state_dict))
    matches = match_groups(optimizer.param_groups, state_dict["param_groups"], report.problems)
    prepared = [
        _prepare(optimizer, match, state_dict["state"], model_clients, report, keep)
        for match in matches
    ]
    report.settle(optimizer, strict)
    state = optimizer.state
    made = [
        (param, state.make_slots(slots) if slots else None)
        for each in prepared
        for param, slots in each.slots
    ]
    clients.install([pair for each in prepared for pair in each.clients])
    for each in prepared:
        each.group.update(each.options)
    for param, slots in made:
        if slots is not None:
            state.put(param, slots)
        elif param in state:
            del state[param]


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
        for name, value in slots.items():
            check_depth(value, f"state_dict['state'][{saved_id!r}][{name!r}]")


def _checked_ids(saved_groups: Any) -> set[Any]:
    """Return the ids that the groups hold, or raise unless they are well formed."""
    ids: set[Any] = set()
    for index, group in enumerate(saved_groups):
        where = f"state_dict['param_groups'][{index}]"
        if not isinstance(group, Mapping):
            raise TypeError(f"{where} must be a dict, not {type(group).__name__}")
        if "params" not in group:
            raise KeyError(f"{where} has no 'params'; it has {sorted(map(str, group))}")
        for name, value in group.items():
            check_depth(value, f"{where}[{name!r}]")
        if not isinstance(group.get(_groups.CLASS, ""), str):
            raise TypeError(
                f"{where}[{_groups.CLASS!r}] must be the name of a class, "
                f"not {group[_groups.CLASS]!r}"
            )
        params = group["params"]
        if not isinstance(params, list | tuple) or not all(
            isinstance(i, int | str) for i in params
        ):
            raise TypeError(f"{where}['params'] must be a list of ids, not {params!r}")
        names = group.get("param_names", params)
        if not isinstance(names, list | tuple) or len(names) != len(params):
            raise ValueError(f"{where}['param_names'] must be a list of {len(params)} names")
        if names is not params and not all(isinstance(name, str) for name in names):
            raise TypeError(f"{where}['param_names'] must be a list of strings, not {names!r}")
        for saved_id in params:
            if saved_id in ids:
                raise ValueError(
                    f"{where}['params'] holds id {saved_id!r}, which another parameter has already"
                )
            ids.add(saved_id)
    return ids


def _class_problems(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> list[str]:
    own = type(optimizer).__name__
    saved = {group[_groups.CLASS] for group in state_dict["param_groups"] if _groups.CLASS in group}
    return [f"it was saved by {name}, this is {own}" for name in sorted(map(str, saved - {own}))]


def _prepare(
    optimizer: Optimizer,
    match: Match,
    state: Mapping[Any, Mapping[str, Any]],
    model_clients: Mapping[str, Any],
    report: Report,
    keep: bool,
) -> Restored:
    """Copy what one group will get, and note what does not fit."""
    options, installs = _prepare_options(optimizer, match, model_clients, report)
    slots = []
    for name, param, saved_id in match.pairs:
        saved = _with_plain_step(state.get(saved_id, {}))
        wrong = optimizer.slot_problems(param, saved) if saved else []
        report.problems += [f"{name!r}: {problem}" for problem in wrong]
        if not wrong:
            home = optimizer.home_of_state(param)
            slots.append((param, _copy_slots(home, name, as_array(param.data), saved, keep)))
    return Restored(match.group, options, installs, slots)


def _with_plain_step(slots: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return slots whose step count is a Python int, where NumPy's stands for it."""
    step = slots.get("step")
    return {**slots, "step": int(step)} if isinstance(step, np.integer) else slots


def _prepare_options(
    optimizer: Optimizer, match: Match, model_clients: Mapping[str, Any], report: Report
) -> tuple[dict[str, Any], list[tuple[Any, Mapping[str, Any]]]]:
    """Return the options that a group will have, and the clients among them that were saved."""
    present = _groups.options(match.group)
    options, installs = dict(present), []
    for key, value in _groups.options(match.saved).items():
        if not clients.is_description(value):
            plain = value if is_plain(value) else python_numbers(value)
            options[key] = copy_tree(plain, _keep_home, f"option {key!r}")
            continue
        lacking = clients.client_problems(key, value, model_clients)
        report.refusals += [f"group {match.index}: {problem}" for problem in lacking]
        if not lacking:
            options[key] = model_clients[key]
            installs.append((model_clients[key], value))
    try:
        optimizer.require_valid(options)
        unfit = [
            f"{name!r}: parameter {text}"
            for name, param, _ in match.pairs
            for text in optimizer.param_problems(param.data, options)
        ]
    except (TypeError, ValueError) as error:
        unfit = [f"group {match.index}: {error}"]
    report.problems += unfit
    return (present, []) if unfit else (options, installs)


def _keep_home(array: Any) -> Any:
    return transfer.copy(array, device_of(array))


def _copy_slots(
    home: str, name: str, data: Any, saved: Mapping[str, Any], keep: bool
) -> dict[str, Any]:
    def bring_home(turn: int, array: Any) -> Any:
        return copy_apart(array, data, turn) if home == "cpu" else transfer.copy(array, home)

    take = saved.__getitem__ if keep or not isinstance(saved, dict) else saved.pop
    return {
        slot: copy_tree(take(slot), partial(bring_home, turn), f"state of {name!r}[{slot!r}]")
        for turn, slot in enumerate(tuple(saved))
    }
