"""Tensors: parameters in the eyes of a step, and what keeps one of them from stepping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu.device.arrays import address, as_array, device_of, is_array, kind_of
from lucid_gpu.optim.core.inputs import notes_changes

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
"""What parameters of a fused optimizer may be made of."""

MAX_STEP = 2**53
"""The largest step count: rules compute with it as a float64, which is exact up to here."""

OVERLAP_WORK = 100_000
"""How many candidates to try for an element that two views share, before they count as one."""


@dataclass(slots=True)
class Tensor:
    """A parameter that may step.

    Attributes:
        position: among the parameters of all groups.
        group: the number of its group.
        name: how errors call it.
        param: the parameter itself.
        data: its array.
        variant: of the rule, as the options of its group ask for.
        slots: the arrays that the variant uses, by name and in order; None stands for one to be
            made. None as a whole until the tensor has a gradient for the first time.
        grad: its gradient, where that is not kept elsewhere.
    """

    position: int
    group: int
    name: str
    param: Any
    data: Any
    variant: Any
    slots: dict[str, Any] | None = None
    grad: Any = None


class Declared(NamedTuple):
    """What an optimizer says of one of its slots.

    Attributes:
        kind: ``"count"`` of steps, ``"number"``, or ``"array"`` of the shape and dtype of the
            parameter.
        is_required: whether a state without it cannot be loaded.
    """

    kind: str
    is_required: bool = False


def slot_problems(
    declared: Mapping[str, Declared], slots: Mapping[str, Any], data: Any
) -> list[str]:
    """Return, in words, why slots cannot be loaded as the state of a parameter.

    Args:
        declared: the slots that there may be.
        slots: what was saved.
        data: of the parameter.
    """
    problems = [
        f"slot {name!r} is missing"
        for name, slot in declared.items()
        if slot.is_required and name not in slots
    ]
    problems += [f"slot {name!r} is unknown" for name in slots if name not in declared]
    for name, (kind, _) in declared.items():
        if name not in slots:
            continue
        if kind == "count":
            problems += step_problems(slots[name])
        elif kind == "array":
            problems += misfits(f"slot {name!r}", slots[name], data, "shape", "dtype")
        elif type(slots[name]) not in (int, float):
            problems.append(f"slot {name!r} must be a number, not {slots[name]!r}")
    return problems


def misfits(what: str, array: Any, data: Any, *kinds: str) -> list[str]:
    """Return, in words, how an array fails to fit the parameter that it belongs to.

    Args:
        what: how to call the array.
        array: it; None or another object fits nothing.
        data: the parameter's array.
        kinds: which of ``"shape"``, ``"dtype"`` and ``"device"`` to compare; all by default.
    """
    if not is_array(array):
        return [f"{what} is a {kind_of(array)}, not a NumPy or CuPy array"]
    facts = (
        ("shape", array.shape, data.shape, "reshape it"),
        ("dtype", array.dtype, data.dtype, f"cast it with .astype({data.dtype.name!r})"),
        ("device", device_of(array), device_of(data), "optimizer.to(device) moves all together"),
    )
    return [
        f"{what} has {kind} {have}, but the parameter has {kind} {want}: {remedy}"
        for kind, have, want, remedy in facts
        if have != want and (not kinds or kind in kinds)
    ]


def unwritable(what: str, array: Any) -> list[str]:
    """Return, in words, why a step cannot write to an array."""
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        return [f"{what} is read-only: pass a copy, or set flags.writeable"]
    steps = zip(array.shape, array.strides, strict=True)
    if array.size and any(extent > 1 and stride == 0 for extent, stride in steps):
        return [f"{what} is a broadcast view, whose elements share memory: pass a copy"]
    return []


def step_problems(step: Any) -> list[str]:
    """Return, in words, why a step count cannot be used."""
    is_int = type(step) is int or isinstance(step, np.integer)
    if is_int and 0 <= step <= MAX_STEP:
        return []
    # Python writes no int of more than some thousand digits.
    bits = int(step).bit_length() if is_int else 0
    shown = f"one of {bits} bits" if bits > 64 else repr(step)
    return [f"slot 'step' must be an int >= 0 and <= 2**53, not {shown}"]


def require(problems: Iterable[str]) -> None:
    """Raise ValueError if there are problems."""
    text = "; ".join(problems)
    if text:
        raise ValueError(text)


def unstrange(value: Any) -> Any:
    """Return an array of another framework as one of CuPy or NumPy, anything else as it is."""
    array = as_array(value)
    return value if array is None else array


def numeric(data: Any) -> Any:
    """Return the data of a parameter as an array that a fused step could update, or None."""
    array = as_array(data)
    return array if array is not None and array.dtype in DTYPES else None


def require_trainable(name: str, data: Any) -> Any:
    """Return the data of a parameter as an array that a step can write to.

    Raises:
        TypeError: it is no array of float32 or float64.
        ValueError: it cannot be written to.
    """
    array = as_array(data)
    if array is None:
        raise TypeError(f"parameter {name!r} holds a {kind_of(data)}, not a NumPy or CuPy array")
    if array.dtype not in DTYPES:
        raise TypeError(f"parameter {name!r} has dtype {array.dtype}: use float32 or float64")
    require(unwritable(f"parameter {name!r}", array))
    return array


def require_slots(
    tensor: Tensor, kept: Mapping[str, Any], used: Sequence[str], is_brought: bool
) -> None:
    """Raise ValueError if a slot that a tensor has does not fit it, or cannot be written to.

    Args:
        tensor: the tensor.
        kept: its state.
        used: the names of the slots that a step writes.
        is_brought: whether slots may be on another device, as they are brought to their place.
    """
    compared = ("shape", "dtype") if is_brought else ()
    for slot in used:
        if slot in kept:
            label = f"slot {slot!r} of parameter {tensor.name!r}"
            require(
                misfits(label, kept[slot], tensor.data, *compared) or unwritable(label, kept[slot])
            )
    problems = step_problems(kept.get("step", 0))
    require(f"parameter {tensor.name!r}: {text}" for text in problems)


def require_own_memory(name: str, param: Any, data: Any) -> None:
    """Raise if what a foreign parameter hands out is a copy, which would be updated in its place.

    Raises:
        RuntimeError: its data is elsewhere whenever it is read.
    """
    if notes_changes(param) or not data.size:
        return
    if address(as_array(param.data)) != address(data):
        raise RuntimeError(
            f"parameter {name!r} is a {type(param).__name__} whose data is a new copy whenever it "
            "is read, so that a step would never reach it: return the array itself from data"
        )


def require_apart(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError if two parameters share memory: updates of one would be lost in the other.

    Views may interleave, as the even and the odd rows of a matrix do.
    """
    by_device: dict[str, list[tuple[int, int, Tensor]]] = {}
    for tensor in tensors:
        if tensor.data.size:
            first, last = _bounds(tensor.data)
            by_device.setdefault(device_of(tensor.data), []).append((first, last, tensor))
    for own in by_device.values():
        own.sort(key=lambda entry: entry[:2])
        if all(one[1] <= other[0] for one, other in pairwise(own)):
            continue
        reaching: list[tuple[int, int, Tensor]] = []
        for entry in own:
            reaching = [other for other in reaching if other[1] > entry[0]]
            for other in reaching:
                if _share(other[2].data, entry[2].data):
                    raise ValueError(
                        f"parameters {other[2].name!r} and {entry[2].name!r} share memory, so that "
                        "a step would update it twice: pass one of them"
                    )
            reaching.append(entry)


def _bounds(array: Any) -> tuple[int, int]:
    """Return the addresses of the first byte of an array and of the one behind its last."""
    start = address(array)
    reach = [
        (extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)
    ]
    below = sum(step for step in reach if step < 0)
    above = sum(step for step in reach if step > 0)
    return start + below, start + above + array.dtype.itemsize


class _Place:
    """Where an array lies, for NumPy to compare: memory of a device is not looked at."""

    def __init__(self, array: Any) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (address(array), True),
            "shape": array.shape,
            "strides": array.strides,
            "typestr": array.dtype.str,
        }


def _share(one: Any, other: Any) -> bool:
    here, there = np.asarray(_Place(one)), np.asarray(_Place(other))
    try:
        return np.shares_memory(here, there, max_work=OVERLAP_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True
