"""What a scheduler is given: schedules, the options of groups, and state dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lucid_gpu.optim import checks
from lucid_gpu.schedules import bounds
from lucid_gpu.schedules.functions import Schedule


def per_group(
    option: str, given: Schedule | Iterable[Schedule], count: int
) -> tuple[Schedule, ...]:
    """Return the schedules of an option: one for all groups, or one for each.

    Raises:
        TypeError: one is no function.
        ValueError: there are not as many as groups.
    """
    if not isinstance(given, list | tuple):
        given = [given]  # type: ignore[list-item]
    elif len(given) != count:
        raise ValueError(
            f"{option} has {len(given)} schedules for {count} parameter groups: give one for "
            "each, or one for all"
        )
    for schedule in given:
        if not callable(schedule):
            raise TypeError(f"{option} must be a function f(t, base), not {schedule!r}")
    return tuple(given)


def each(make: Callable[[Any], Schedule], values: Any) -> Schedule | list[Schedule]:
    """Return the schedule that is made of a value, or for a list of values one of each."""
    if isinstance(values, list | tuple):
        return [make(value) for value in values]
    return make(values)


def base(group: Mapping[str, Any], option: str, index: int) -> float:
    """Return what an option of a group was before it was scheduled.

    Raises:
        TypeError: it is no number.
        ValueError: it is not finite, or the group has no such option.
    """
    key, value = f"initial_{option}", None
    if key in group:
        value = group[key]
    elif option == "momentum" and "betas" in group:
        key, value = "betas[0]", group["betas"][0]
    elif option in group:
        key, value = option, group[option]
    else:
        numbers = [name for name, held in group.items() if type(held) in (int, float)]
        raise ValueError(
            f"parameter group {index} has no option {option!r} to schedule; its numbers are "
            f"{', '.join(numbers)}"
        )
    found: dict[str, Any] = {key: value}
    checks.finite(found, key)
    number: float = found[key]
    return number


def spelled(group: Mapping[str, Any], option: str, value: float) -> dict[str, Any]:
    """Return an option as its group spells it."""
    if option == "momentum" and "betas" in group:
        return {"betas": (value, *group["betas"][1:])}
    return {option: value}


def moment(name: str, value: Any) -> float:
    """Return t, a whole number as an int.

    Raises:
        TypeError: it is no number.
        ValueError: it is negative or not finite.
    """
    fields = {name: value}
    bounds.number(fields, name, least=0)
    t: float = fields[name]
    return int(t) if float(t).is_integer() else t


def saved_moment(state_dict: Any) -> float:
    """Return the t of a state dict: the outermost, or that of the first of those that it holds.

    Raises:
        TypeError: it is no dict, or its t no number.
        KeyError: it has none.
        ValueError: it is negative or not finite.
    """
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict must be a dict, not {type(state_dict).__name__}")
    if "last_epoch" in state_dict:
        return moment("last_epoch", state_dict["last_epoch"])
    members = state_dict.get("_schedulers")
    if isinstance(members, Sequence) and members:
        return saved_moment(members[0])
    raise KeyError(f"state_dict has no 'last_epoch'; it has {sorted(map(str, state_dict))}")


def metric(value: Any) -> float:
    """Return a metric as a float, which may be NaN or infinite.

    Raises:
        TypeError: it is no real number.
        ValueError: it is an int that no float can hold.
    """
    number = checks.python_number(value)
    if type(number) not in (int, float):
        raise TypeError(f"a metric must be a number, not {value!r}")
    try:
        return float(number)
    except OverflowError:
        raise ValueError("a metric must be a number that a float can hold") from None
