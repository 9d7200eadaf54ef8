"""Roster: which parameters step, with which arrays, by which executor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table
from lucid_gpu.device.arrays import address, as_array, device_of, is_array
from lucid_gpu.execution.cpu import CpuExecutor
from lucid_gpu.execution.cuda import CudaExecutor
from lucid_gpu.execution.plan import Work
from lucid_gpu.execution.streamed import StreamedExecutor
from lucid_gpu.optim.core import slots as _slots
from lucid_gpu.optim.core.groups import named
from lucid_gpu.optim.core.state import Clock
from lucid_gpu.parameter import Parameter, latest_changes

if TYPE_CHECKING:
    from lucid_gpu.optim.core.fused import FusedOptimizer

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
"""What parameters of a fused optimizer may be made of."""

Executor: TypeAlias = CpuExecutor | CudaExecutor


class Item(NamedTuple):
    """A parameter that steps, and its arrays."""

    position: int
    group: int
    name: str
    param: Any
    data: Any
    grad: Any
    step: int
    slots: dict[str, Any]
    """In the order of the rule's functor; None stands for one to be made."""


class Row(NamedTuple):
    """Parameters of one group that have made the same number of steps: they share scalars."""

    group: dict[str, Any]
    clock: Clock


@dataclass
class Batch:
    """The parameters of one device and dtype, and what steps them."""

    executor: Executor
    rows: list[Row]
    positions: npt.NDArray[np.intp]


class Roster:
    """What one step of an optimizer does: made when anything changed, kept while gradients move.

    Args:
        optimizer: its groups, gradients and state are read, checked, and given the slots they
            lack; if anything does not fit, it is left as it was.

    Raises:
        TypeError: a parameter is not made of float32 or float64, or an option is of a wrong type.
        ValueError: an option is out of bounds, or a gradient or slot does not fit its parameter.
    """

    def __init__(self, optimizer: FusedOptimizer) -> None:
        groups = optimizer.param_groups
        self._changes = latest_changes()
        self._is_hosted = optimizer.state_device is not None
        self._options = _options(optimizer)
        self._variants = [optimizer.variant_of(group) for group in groups]
        self._groups = list(groups)
        self._params_of = [list(group["params"]) for group in groups]
        self._params = [param for params in self._params_of for param in params]
        self._are_own = all(map(_is_own, self._params))
        self._entries = np.array([p.entry for p in self._params] if self._are_own else [], np.intp)
        self._data = [param.data for param in self._params]
        grads = [param.grad for param in self._params]
        self._has_grad = [grad is not None for grad in grads]
        self._is_present = np.array(self._has_grad, np.bool_)
        with optimizer.state.settled():
            items = self._collect(optimizer, grads)
        by_kind: dict[tuple[str, np.dtype[Any]], list[Item]] = {}
        for item in items:
            by_kind.setdefault((device_of(item.data), item.data.dtype), []).append(item)
        _refuse_shared_memory(items)
        self.devices = {device for device, _ in by_kind}
        self.batches = [self._make_batch(optimizer, kind, own) for kind, own in by_kind.items()]
        for batch, own in zip(self.batches, by_kind.values(), strict=True):
            _attach_state(optimizer, batch, own)
        executors = [batch.executor for batch in self.batches]
        self.streamed = [each for each in executors if isinstance(each, StreamedExecutor)]
        self._needs_gradients = not self._are_own or any(
            batch.executor.needs_gradients for batch in self.batches
        )
        self._version = optimizer.state.version

    def still_holds(self, optimizer: FusedOptimizer) -> bool:
        """Say whether the next step can use it too, after taking in gradients that moved."""
        groups = optimizer.param_groups
        if self._version is not optimizer.state.version or not self._has_same_groups(groups):
            return False
        options = _options(optimizer)
        if options != self._options:
            if [optimizer.variant_of(group) for group in groups] != self._variants:
                return False
            self._options = options
        data, grad = latest_changes()
        is_data_settled = self._are_own and data is self._changes[0]
        if not is_data_settled and not self._has_same_data():
            return False
        if self._needs_gradients:
            if not self._take_gradients():
                return False
        elif grad is not self._changes[1] and not self._take_addresses():
            return False
        self._changes = data, grad
        return True

    def tick(self, scalars: Callable[[dict[str, Any], int], Any]) -> list[tuple[Batch, list[Any]]]:
        """Count a step of every parameter and return its scalars by row; all of it, or nothing."""
        result = [
            (batch, [scalars(group, clock.step + 1) for group, clock in batch.rows])
            for batch in self.batches
        ]
        for batch in self.batches:
            for _, clock in batch.rows:
                clock.step += 1
        return result

    def _has_same_groups(self, groups: list[dict[str, Any]]) -> bool:
        if not _are_same(groups, self._groups):
            return False
        params_of = [group["params"] for group in groups]
        if self._are_own:  # a Parameter equals itself alone, and comparing lists is quick
            return params_of == self._params_of
        return all(map(_are_same, params_of, self._params_of))

    def _has_same_data(self) -> bool:
        return all(map(is_, [param.data for param in self._params], self._data))

    def _collect(self, optimizer: FusedOptimizer, grads: list[Any]) -> list[Item]:
        """Return the parameters that have a gradient, or raise if one of them cannot step."""
        items: list[Item] = []
        position = -1
        for number, group in enumerate(optimizer.param_groups):
            used = optimizer.slots[: optimizer.used_slots(self._variants[number])]
            for name, param in named(group):
                position += 1
                if grads[position] is None:
                    continue
                data = _trainable(name, self._data[position])
                grad = _as_array(grads[position])
                _require(misfits(f"the gradient of parameter {name!r}", grad, data))
                # A slot of a parameter on a GPU is brought to the host from wherever it is.
                is_brought = self._is_hosted and device_of(data) != "cpu"
                compared = ("shape", "dtype") if is_brought else ()
                kept = optimizer.state.get(param, {})
                slots = {slot: kept.get(slot) for slot in used}
                for slot, array in slots.items():
                    if slot in kept:
                        label = f"slot {slot!r} of parameter {name!r}"
                        _require(misfits(label, array, data, *compared))
                step = kept.get("step", 0)
                _require([f"parameter {name!r}: {text}" for text in step_problems(step)])
                items.append(Item(position, number, name, param, data, grad, step, slots))
        _slots.provide(items, optimizer.host_memory if self._is_hosted else None)
        return items

    def _make_batch(
        self, optimizer: FusedOptimizer, kind: tuple[str, np.dtype[Any]], items: list[Item]
    ) -> Batch:
        device, dtype = kind
        keys = [(item.group, item.step) for item in items]
        distinct = sorted(set(keys))
        row_of = {key: row for row, key in enumerate(distinct)}
        work = Work(
            rule=type(optimizer),
            dtype=dtype,
            params=[item.data for item in items],
            grads=[item.grad for item in items],
            slots=[tuple(item.slots.values()) for item in items],
            row=[row_of[key] for key in keys],
            variants=[self._variants[group] for group, _ in distinct],
        )
        executor: Executor
        if device == "cpu":
            executor = CpuExecutor(work)
        elif self._is_hosted and any(work.slots):
            executor = StreamedExecutor(work)
        else:
            executor = CudaExecutor(work)
        rows = [Row(optimizer.param_groups[group], Clock(step)) for group, step in distinct]
        return Batch(executor, rows, np.array([item.position for item in items], np.intp))

    def _take_gradients(self) -> bool:
        """Hand the gradients to the executors; False if other parameters have them than before."""
        grads = [param.grad for param in self._params]
        if [grad is not None for grad in grads] != self._has_grad:
            return False
        if not self._are_own:  # a Parameter has checked its gradient when it was set
            grads = [_as_array(grad) for grad in grads]
            for position, has_grad in enumerate(self._has_grad):
                if has_grad:
                    label = f"the gradient of parameter {self._name(position)!r}"
                    _require(misfits(label, grads[position], self._data[position]))
        return all(
            batch.executor.replace_gradients(
                [grads[position] for position in batch.positions.tolist()]
            )
            for batch in self.batches
        )

    def _take_addresses(self) -> bool:
        """Do what :meth:`_take_gradients` does, from the ledger, without touching a gradient."""
        addresses, layouts = gradient_table.read(self._entries)
        if not np.array_equal(layouts != gradient_table.ABSENT, self._is_present):
            return False
        return all(
            batch.executor.move_gradients(addresses[batch.positions], layouts[batch.positions])
            for batch in self.batches
            if isinstance(batch.executor, CudaExecutor)
        )

    def _name(self, position: int) -> str:
        names = [name for group in self._groups for name, _ in named(group)]
        return names[position]


def _options(optimizer: FusedOptimizer) -> list[Any]:
    return [group[key] for group in optimizer.param_groups for key in optimizer.defaults]


def _attach_state(optimizer: FusedOptimizer, batch: Batch, items: list[Item]) -> None:
    clocks = {(id(row.group), row.clock.step): row.clock for row in batch.rows}
    for item in items:
        slots = optimizer.state[item.param]
        group = optimizer.param_groups[item.group]
        slots["step"] = clocks[id(group), item.step]
        slots.update(item.slots)


def _are_same(now: list[Any], then: list[Any]) -> bool:
    """Say whether two lists hold the same objects."""
    return len(now) == len(then) and all(map(is_, now, then))


def _is_own(param: Any) -> bool:
    """Say whether a parameter notes its changes, by the properties of Parameter itself."""
    kind = type(param)
    return (
        isinstance(param, Parameter) and kind.grad is Parameter.grad and kind.data is Parameter.data
    )


def misfits(what: str, array: Any, data: Any, *kinds: str) -> list[str]:
    """Return, in words, how an array fails to fit the parameter that it belongs to.

    Args:
        what: how to call the array.
        array: it; None or another object fits nothing.
        data: the parameter's array.
        kinds: which of ``"shape"``, ``"dtype"`` and ``"device"`` to compare; all by default.
    """
    if not is_array(array):
        return [f"{what} is a {type(array).__name__}, not a NumPy or CuPy array"]
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


def step_problems(step: Any) -> list[str]:
    """Return, in words, why a step count cannot be used."""
    if type(step) is int and step >= 0:
        return []
    return [f"slot 'step' must be an int >= 0, not {step!r}"]


def _require(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))


def _as_array(value: Any) -> Any:
    """Return an array of another framework as one of CuPy or NumPy, anything else as it is."""
    array = as_array(value)
    return value if array is None else array


def _trainable(name: str, data: Any) -> Any:
    """Return the data of a parameter as an array that a step can write to, or raise."""
    array = as_array(data)
    if array is None:
        raise TypeError(
            f"parameter {name!r} holds a {type(data).__name__}, not a NumPy or CuPy array"
        )
    if array.dtype not in DTYPES:
        raise TypeError(f"parameter {name!r} has dtype {array.dtype}: use float32 or float64")
    if isinstance(array, np.ndarray) and not array.flags.writeable:
        raise ValueError(f"parameter {name!r} is read-only: pass a copy, or set flags.writeable")
    steps = zip(array.shape, array.strides, strict=True)
    if array.size and any(extent > 1 and stride == 0 for extent, stride in steps):
        raise ValueError(
            f"parameter {name!r} is a broadcast view, whose elements share memory: pass a copy"
        )
    return array


def _refuse_shared_memory(items: list[Item]) -> None:
    """Raise if two parameters start at the same address: blocks would race to update it."""
    first: dict[tuple[str, int], str] = {}
    for item in items:
        if item.data.size:
            place = (device_of(item.data), address(item.data))
            if place in first:
                raise ValueError(
                    f"parameters {first[place]!r} and {item.name!r} share memory, so that a step "
                    "would update it twice: pass one of them"
                )
            first[place] = item.name
