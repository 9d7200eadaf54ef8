"""Matching the groups and parameters of a state dict with those of an optimizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from lucid_gpu.optim.core.groups import is_positional, named


@dataclass
class Match:
    """One group of the optimizer, its saved options, and ``(name, parameter, saved id)`` each."""

    index: int
    group: dict[str, Any]
    saved: Mapping[str, Any]
    pairs: list[tuple[str, Any, Any]] = field(default_factory=list)


def match_groups(
    groups: Sequence[dict[str, Any]], saved: Sequence[Mapping[str, Any]], problems: list[str]
) -> list[Match]:
    """Match by name where every group of both sides has names, else by position.

    What does not match is described in ``problems`` and left out of the result.
    """
    if len(groups) != len(saved):
        problems.append(f"it has {len(saved)} parameter groups, this optimizer has {len(groups)}")
    own_names = [group["param_names"] for group in groups]
    saved_names = [group.get("param_names") for group in saved]
    if not (_are_given(own_names) and _are_given(saved_names)) or own_names == saved_names:
        return _by_position(groups, saved, problems)
    for side, names in (("this optimizer", own_names), ("the state dict", saved_names)):
        repeated = [name for name, times in Counter(chain(*names)).items() if times > 1]
        if repeated:
            problems.append(
                f"the names {', '.join(map(repr, repeated))} stand for several parameters of "
                f"{side}, so that matching by name is ambiguous: give each its own name"
            )
            return []
    return _by_name(groups, saved, problems)


def _are_given(names: Sequence[Any]) -> bool:
    return all(each and not is_positional(each) for each in names)


def _by_position(
    groups: Sequence[dict[str, Any]], saved: Sequence[Mapping[str, Any]], problems: list[str]
) -> list[Match]:
    matches = []
    for index, (group, saved_group) in enumerate(zip(groups, saved, strict=False)):
        own, ids = named(group), saved_group["params"]
        if len(own) != len(ids):
            names = ", ".join(repr(name) for name, _ in own)
            problems.append(
                f"group {index} has {len(ids)} parameters saved, {len(own)} here: {names}"
            )
            continue
        pairs = [(name, param, saved_id) for (name, param), saved_id in zip(own, ids, strict=True)]
        matches.append(Match(index, group, saved_group, pairs))
    return matches


def _by_name(
    groups: Sequence[dict[str, Any]], saved: Sequence[Mapping[str, Any]], problems: list[str]
) -> list[Match]:
    home = {
        name: (index, saved_id)
        for index, group in enumerate(saved)
        for name, saved_id in zip(group["param_names"], group["params"], strict=True)
    }
    matches = []
    for index, group in enumerate(groups):
        names = group["param_names"]
        known = [name for name in names if name in home]
        problems += [f"group {index}: {name!r} is not in it" for name in names if name not in home]
        sources = sorted({home[name][0] for name in known})
        if len(sources) > 1:
            problems.append(
                f"the parameters of group {index} are spread over its groups "
                f"{', '.join(map(str, sources))}, so that their options are ambiguous"
            )
        options = saved[sources[0]] if len(sources) == 1 else {}
        pairs = [(name, param, home[name][1]) for name, param in named(group) if name in home]
        matches.append(Match(index, group, options, pairs))
    here = {name for group in groups for name in group["param_names"]}
    problems += [
        f"{name!r} is in it but not in this optimizer" for name in home if name not in here
    ]
    return matches
