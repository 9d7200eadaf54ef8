"""Bounds of hyperparameters, and the errors that name option, bound and value."""

from __future__ import annotations

import math
import numbers
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def _number(name: str, value: Any) -> float:
    # Floats first: to ask numbers.Real takes longer than all the rest.
    if type(value) is not float and (
        isinstance(value, bool) or not isinstance(value, numbers.Real)
    ):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return number


def finite(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is a finite number."""
    for name in names:
        _number(name, options[name])


def nonnegative(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is a finite number ≥ 0."""
    for name in names:
        if _number(name, options[name]) < 0:
            raise ValueError(f"{name} must be >= 0, not {options[name]!r}")


def decay_rates(options: Mapping[str, Any], name: str, count: int) -> None:
    """Raise unless the option is a sequence of ``count`` numbers in [0, 1)."""
    rates = options[name]
    if not isinstance(rates, tuple | list) or len(rates) != count:
        raise ValueError(f"{name} must be a tuple of {count} numbers in [0, 1), not {rates!r}")
    for index, rate in enumerate(rates):
        if not 0 <= _number(f"{name}[{index}]", rate) < 1:
            raise ValueError(f"{name}[{index}] must be >= 0 and < 1, not {rate!r}")


def one_of(options: Mapping[str, Any], name: str, choices: tuple[Any, ...]) -> None:
    """Raise unless the option is one of ``choices``; True and 1 are not the same choice."""
    value = options[name]
    for choice in choices:
        if type(value) is type(choice) and value == choice:
            return
    raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, not {value!r}")


def switches(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is True or False."""
    for name in names:
        one_of(options, name, (False, True))
