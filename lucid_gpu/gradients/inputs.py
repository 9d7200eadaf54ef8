"""What the functions for gradients are given: parameters, gradients, bounds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.device.arrays import as_array, device_of, is_writable, kind_of
from lucid_gpu.execution import sums
from lucid_gpu.optim.core.checks import python_number
from lucid_gpu.optim.core.groups import is_parameter, named
from lucid_gpu.optim.core.optimizer import Optimizer
from lucid_gpu.optim.core.tensors import require, unwritable


def gradients_of(parameters: Any, what: str, is_written: bool) -> tuple[list[str], list[Any]]:
    """Return names and gradients, None for those that are absent; no gradients if all are.

    Args:
        parameters: an optimizer, also of PyTorch, a parameter, or an iterable of parameters or
            named ones.
        what: the function that asks.
        is_written: whether it changes them.

    Raises:
        TypeError: something is no parameter, or a gradient is no array that can be measured.
        ValueError: a gradient cannot be changed, or would be twice.
        RuntimeError: a stream records a graph.
    """
    pairs = named_parameters(parameters)
    names, grads, homes = [name for name, _ in pairs], [], set()
    for name, param in pairs:
        grad = param.grad
        if grad is not None:
            label = f"the gradient of parameter {name!r}"
            grad = float_array(label, grad)
            if is_written and not (grad.flags.c_contiguous and is_writable(grad)):
                require(unwritable(label, grad))
            homes.add(device_of(grad))
        grads.append(grad)
    gpu.refuse_capture(what, homes)
    if is_written:
        _require_apart(names, grads)
        for _, param in pairs:
            torch_tensors.note_write(param.grad)
    return names, grads if homes else []


def named_parameters(parameters: Any) -> list[tuple[str, Any]]:
    """Return parameters and their names, or else their positions.

    Raises:
        TypeError: something is no parameter.
    """
    if isinstance(parameters, Optimizer):
        return [pair for group in parameters.param_groups for pair in named(group)]
    if hasattr(parameters, "param_groups"):  # of PyTorch, whose groups may have no names
        parameters = [
            each
            for group in parameters.param_groups
            for each in (
                zip(group["param_names"], group["params"], strict=True)
                if group.get("param_names")
                else group["params"]
            )
        ]
    items = [parameters] if is_parameter(parameters) else None
    if items is None:
        items = listed(parameters, "parameters", "parameters, or an optimizer")
    pairs = []
    for position, item in enumerate(items):
        name, param = None, item
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            name, param = item
        if not is_parameter(param):
            raise TypeError(
                f"element {position} of parameters is a {kind_of(param)}, which is no parameter: "
                "pass objects with data and grad"
            )
        pairs.append((name or getattr(param, "name", None) or str(position), param))
    return pairs


def listed(values: Any, what: str, kind: str) -> list[Any]:
    """Return what is iterated over; TypeError if that has no order."""
    if isinstance(values, str | bytes | dict | set | frozenset) or not isinstance(values, Iterable):
        raise TypeError(f"{what} must be a list of {kind}, not a {kind_of(values)}")
    return list(values)


def float_array(label: str, value: Any) -> Any:
    """Return an array, of whichever framework, as NumPy's or CuPy's.

    Raises:
        TypeError: it is none, or not of floating-point numbers that can be measured.
    """
    array = as_array(value)
    if array is None or not sums.is_measurable(array.dtype):
        found = f"a {kind_of(value)}" if array is None else f"an array of {array.dtype}"
        raise TypeError(
            f"{label} is {found}: it must be an array of float16, bfloat16, float32 or float64"
        )
    return array


def nonnegative(name: str, value: Any) -> float:
    """Return a number of at least 0, which may be infinite, as a float.

    Raises:
        TypeError: it is no number.
        ValueError: it is less than 0, or NaN.
    """
    try:
        number = python_number(value)
        number = float(number) if type(number) is int else number
    except OverflowError:
        number = math.inf
    if type(number) is not float:
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not number >= 0:
        raise ValueError(f"{name} must be >= 0, not {value!r}")
    return number


def _require_apart(names: Sequence[str], grads: Sequence[Any]) -> None:
    """Raise ValueError if two parameters have one gradient, which would be changed twice."""
    first_of: dict[int, int] = {}
    for position, grad in enumerate(grads):
        if grad is not None and grad.size:
            first = first_of.setdefault(id(grad), position)
            if first != position:
                raise ValueError(
                    f"parameters {names[first]!r} and {names[position]!r} have the same gradient, "
                    "which would be changed twice: pass one of them"
                )
