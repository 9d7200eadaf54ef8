"""Bounds of the arguments of schedules, and the errors that name argument, bound and value.

Each takes the fields of a schedule as a dict, and puts Python's number in the place of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lucid_gpu.optim import checks


def number(
    fields: dict[str, Any],
    *names: str,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise unless each named field is a finite number within the bounds that are given."""
    checks.finite(fields, *names)
    for name in names:
        value = fields[name]
        holds = {
            f">= {least}": least is None or value >= least,
            f"> {above}": above is None or value > above,
            f"<= {most}": most is None or value <= most,
            f"< {below}": below is None or value < below,
        }
        for bound, is_kept in holds.items():
            if not is_kept:
                raise ValueError(f"{name} must be {bound}, not {value!r}")


def whole(fields: dict[str, Any], *names: str, least: int) -> None:
    """Raise unless each named field is a whole number of at least ``least``."""
    checks.finite(fields, *names)
    for name in names:
        if not isinstance(fields[name], int):
            raise TypeError(f"{name} must be a whole number, not {fields[name]!r}")
        if fields[name] < least:
            raise ValueError(f"{name} must be >= {least}, not {fields[name]!r}")


def function(fields: dict[str, Any], *names: str) -> None:
    """Raise TypeError unless each named field can be called."""
    for name in names:
        if not callable(fields[name]):
            raise TypeError(f"{name} must be a function, not {fields[name]!r}")


def moments(name: str, values: Sequence[Any]) -> tuple[float, ...]:
    """Return steps at which something happens, as numbers.

    Raises:
        TypeError: they are no sequence of numbers.
        ValueError: one is negative or not finite.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name} must be a list of numbers, not {values!r}")
    found = {f"{name}[{index}]": value for index, value in enumerate(values)}
    number(found, *found, least=0)
    return tuple(found.values())
