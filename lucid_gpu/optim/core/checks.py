"""Bounds of hyperparameters, and the errors that name option, bound and value.

A number may be anything that ``float()`` takes and that is one number: NumPy's, an array of no
dimension of any framework, a fraction. In a dict, what checks it puts Python's number in its place,
so that a rule computes in float64 whatever it was given, and a state dict holds plain numbers.
"""

from __future__ import annotations

import math
import numbers
from operator import is_not
from typing import TYPE_CHECKING, Any, SupportsFloat

from lucid_gpu.device.arrays import is_masked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def python_number(value: Any) -> Any:
    """Return a number as Python's int or float, and what is no real number as it is.

    Example:
        >>> import numpy as np
        >>> python_number(np.float32(0.5)), python_number(np.array(3)), python_number("0.5")
        (0.5, 3, '0.5')
    """
    if getattr(value, "ndim", 0) != 0 or is_masked(value):
        return value
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, bool) or not isinstance(number, SupportsFloat):
        return value
    if isinstance(number, numbers.Complex) and not isinstance(number, numbers.Real):
        return value
    return int(number) if isinstance(number, int) else float(number)


def python_numbers(value: Any) -> Any:
    """Return a number, or those of a tuple, list or one-dimensional array, as Python's."""
    if getattr(value, "ndim", 0) == 1:
        return tuple(value.tolist())
    if isinstance(value, tuple | list):
        found = [python_number(item) for item in value]
        return found if isinstance(value, list) else tuple(found)
    return python_number(value)


def _number(name: str, value: Any) -> float:
    # Python's own first: the other questions take longer than all the rest.
    number = value if type(value) in (float, int) else _converted(value)
    if type(number) not in (float, int):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not _is_finite(number):
        raise ValueError(f"{name} must be finite, not {_shown(value)}")
    return number  # type: ignore[no-any-return]


def _converted(value: Any) -> Any:
    try:
        return python_number(value)
    except OverflowError:
        return math.inf


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int that no float can hold
        return False


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:  # Python writes no int of more than some thousand digits
        return f"a {type(value).__name__} of thousands of digits"


def _replace(options: Mapping[str, Any], name: str, number: Any) -> None:
    if number is not options[name] and isinstance(options, dict):
        options[name] = number


def finite(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is a finite number."""
    for name in names:
        _replace(options, name, _number(name, options[name]))


def nonnegative(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is a finite number ≥ 0."""
    for name in names:
        number = _number(name, options[name])
        if number < 0:
            raise ValueError(f"{name} must be >= 0, not {options[name]!r}")
        _replace(options, name, number)


def positive(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is a finite number > 0."""
    for name in names:
        number = _number(name, options[name])
        if number <= 0:
            raise ValueError(f"{name} must be > 0, not {options[name]!r}")
        _replace(options, name, number)


def integer(options: Mapping[str, Any], name: str, least: int, most: int) -> None:
    """Raise unless the option is an int from ``least`` to ``most``."""
    number = _number(name, options[name])
    if not isinstance(number, int):
        raise TypeError(f"{name} must be an int, not {options[name]!r}")
    if not least <= number <= most:
        raise ValueError(f"{name} must be >= {least} and <= {most}, not {_shown(number)}")
    _replace(options, name, number)


def rates(options: Mapping[str, Any], *names: str) -> None:
    """Raise unless each named option is a number in [0, 1)."""
    for name in names:
        _replace(options, name, _rate(name, options[name]))


def decay_rates(options: Mapping[str, Any], name: str, count: int) -> None:
    """Raise unless the option is a sequence of ``count`` numbers in [0, 1)."""
    _replace_all(options, name, count, " in [0, 1)", _rate)


def finite_numbers(options: Mapping[str, Any], name: str, count: int) -> None:
    """Raise unless the option is a sequence of ``count`` finite numbers."""
    _replace_all(options, name, count, "", _number)


def whole_numbers(options: Mapping[str, Any], *names: str, least: int, most: float) -> None:
    """Raise unless each named option is a whole number of these bounds."""
    for name in names:
        number = _number(name, options[name])
        if not (float(number).is_integer() and least <= number <= most):
            bound = f">= {least}" if most == math.inf else f">= {least} and <= {most}"
            raise ValueError(f"{name} must be a whole number {bound}, not {options[name]!r}")
        _replace(options, name, number if type(number) is int else int(number))


def _rate(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be >= 0 and < 1, not {value!r}")
    return number


def _replace_all(
    options: Mapping[str, Any], name: str, count: int, bounds: str, number: Callable[..., float]
) -> None:
    given = options[name]
    values = given.tolist() if getattr(given, "ndim", 0) == 1 else given
    if not isinstance(values, tuple | list) or len(values) != count:
        raise ValueError(f"{name} must be a tuple of {count} numbers{bounds}, not {given!r}")
    found = [number(f"{name}[{index}]", value) for index, value in enumerate(values)]
    if values is not given or any(map(is_not, found, values)):
        _replace(options, name, found if isinstance(given, list) else tuple(found))


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
