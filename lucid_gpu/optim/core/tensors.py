"""Tensors: parameters in the eyes of a step, and what keeps one of them from stepping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu.device.arrays import address, as_array, device_of, is_array, kind_of
from lucid_gpu.execution import formats
from lucid_gpu.execution.rule import BFLOAT16, Storage
from lucid_gpu.optim.core.inputs import notes_changes
from lucid_gpu.row_gradient import RowGradient

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
"""What parameters of every optimizer may be made of, and what rules compute in."""

TRAINABLE = (*DTYPES, *formats.HALVES)
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
        storage: what its arrays are stored as.
        used: the dtypes of the slots that its step uses, by name and in order.
        slots: the arrays of these names, in that order; None stands for one to be made. None
            as a whole until the tensor has a gradient for the first time.
        grad: its gradient, where that is not kept elsewhere.
    """

    position: int
    group: int
    name: str
    param: Any
    data: Any
    variant: Any
    storage: Storage | None = None
    used: dict[str, np.dtype[Any]] = field(default_factory=dict)
    slots: dict[str, Any] | None = None
    grad: Any = None


class Declared(NamedTuple):
    """What an optimizer says of one of its slots.

    Attributes:
        kind: ``"count"`` of steps, ``"number"``, or an array: ``"array"`` of the dtype of the
            parameter, ``"state"`` of what its rule computes in or bfloat16, or the name of a dtype.
        is_required: whether a state without it cannot be loaded.
        shape: of an array; None is that of the parameter.
    """

    kind: str
    is_required: bool = False
    shape: tuple[int, ...] | None = None


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
    for name, (kind, _, shape) in declared.items():
        if name not in slots:
            continue
        if kind == "count":
            problems += step_problems(slots[name])
        elif kind != "number":
            problems += _array_problems(name, kind, slots[name], data, shape)
        elif type(slots[name]) not in (int, float):
            problems.append(f"slot {name!r} must be a number, not {slots[name]!r}")
    return problems


def _array_problems(
    name: str, kind: str, array: Any, data: Any, shape: tuple[int, ...] | None
) -> list[str]:
    dtype = data.dtype
    if kind == "state":
        dtype = computing(dtype)
        is_brief = getattr(array, "dtype", None) == BFLOAT16 and dtype == np.float32
        dtype = BFLOAT16 if is_brief else dtype
    elif kind != "array":
        dtype = np.dtype(kind)
    return misfits(f"slot {name!r}", array, data, "shape", "dtype", dtype=dtype, shape=shape)


def computing(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which parameters of a dtype are updated."""
    return Storage(dtype, dtype, ()).compute if dtype in TRAINABLE else dtype


def misfits(
    what: str,
    array: Any,
    data: Any,
    *kinds: str,
    dtype: np.dtype[Any] | None = None,
    shape: tuple[int, ...] | None = None,
) -> list[str]:
    """Return, in words, how an array fails to fit the parameter that it belongs to.

    Args:
        what: how to call the array.
        array: it; None or another object fits nothing.
        data: the parameter's array.
        kinds: which of ``"shape"``, ``"dtype"`` and ``"device"`` to compare; all by default.
        dtype: that it must have; None for that of the parameter.
        shape: that it must have; None for that of the parameter.
    """
    if isinstance(array, RowGradient):
        remedy = "give a dense one, gradient.dense(param.shape), or train it with SparseAdam"
        return [f"{what} is a RowGradient, which only SparseAdam takes: {remedy}"]
    if not is_array(array):
        return [f"{what} is a {kind_of(array)}, not a NumPy or CuPy array"]
    if dtype is None or dtype == data.dtype:
        wanted, due = data.dtype, f"the parameter has dtype {data.dtype}"
    else:
        wanted, due = dtype, f"a parameter of {data.dtype} asks for dtype {dtype} here"
    own = data.shape if shape is None else shape
    whose = "the parameter" if own == data.shape else "what fits the parameter"
    facts = (
        ("shape", array.shape, own, f"{whose} has shape {own}: reshape it"),
        ("dtype", array.dtype, wanted, f"{due}: cast it with .astype({wanted.name!r})"),
        (
            "device",
            device_of(array),
            device_of(data),
            f"the parameter has device {device_of(data)}: optimizer.to(device) moves all together",
        ),
    )
    return [
        f"{what} has {kind} {have}, but {remedy}"
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
    return array if array is not None and array.dtype in TRAINABLE else None


def require_trainable(name: str, data: Any, dtypes: tuple[np.dtype[Any], ...] = DTYPES) -> Any:
    """Return the data of a parameter as an array that a step can write to.

    Args:
        name: how errors call the parameter.
        data: what it holds.
        dtypes: what it may be made of.

    Raises:
        TypeError: it is no array of one of them.
        ValueError: it cannot be written to.
    """
    array = as_array(data)
    if array is None:
        raise TypeError(
            f"parameter {name!r} holds a {kind_of(data)}, not a NumPy or CuPy array: "
            "wrap the array behind it in lucid_gpu.Parameter"
        )
    if array.dtype not in dtypes:
        names = [dtype.name for dtype in dtypes]
        named = f"{', '.join(names[:-1])} or {names[-1]}"
        beside = ""
        if array.dtype in formats.HALVES:
            beside = ", or train it by an optimizer that keeps its exact value beside it, as AdamW"
        raise TypeError(f"parameter {name!r} has dtype {array.dtype}: use {named}{beside}")
    require(unwritable(f"parameter {name!r}", array))
    return array


def require_slots(
    tensor: Tensor,
    kept: Mapping[str, Any],
    used: Mapping[str, np.dtype[Any] | None],
    is_brought: bool,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> None:
    """Raise ValueError if a slot that a tensor has does not fit it, or cannot be written to.

    Args:
        tensor: the tensor.
        kept: its state.
        used: the names of the slots that a step writes, and their dtypes; None stands for that of
            the parameter.
        is_brought: whether slots may be on another device, as they are brought to their place.
        shapes: of those slots that have not the shape of the parameter.
    """
    compared = ("shape", "dtype") if is_brought else ()
    for slot, dtype in used.items():
        if slot in kept:
            array, label = kept[slot], f"slot {slot!r} of parameter {tensor.name!r}"
            present, shape = getattr(array, "dtype", None), (shapes or {}).get(slot)
            is_castable = dtype is not None and may_be_stored_as(dtype, present)
            wanted = present if is_castable else dtype
            require(
                misfits(label, array, tensor.data, *compared, dtype=wanted, shape=shape)
                or unwritable(label, array)
            )
    problems = step_problems(kept.get("step", 0))
    require(f"parameter {tensor.name!r}: {text}" for text in problems)


def may_be_stored_as(dtype: np.dtype[Any], present: np.dtype[Any] | None) -> bool:
    """Say whether a step stores a slot anew as a dtype: as ``state_dtype`` asks for since then."""
    return {dtype, present} == {BFLOAT16, np.dtype(np.float32)}


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
