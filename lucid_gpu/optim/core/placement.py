"""Placement: where the arrays of an optimizer live, and how they get from there to elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from lucid_gpu.device import gpu, torch_tensors, transfer
from lucid_gpu.device.arrays import as_array, device_of, is_cupy
from lucid_gpu.device.overlap import Copies, contiguous
from lucid_gpu.execution.plan import common_layout
from lucid_gpu.optim.core.host_memory import HostMemory
from lucid_gpu.optim.core.state import Slots, State
from lucid_gpu.optim.core.tree import arrays_in, copy_tree
from lucid_gpu.parameter import Parameter

HOST = "host"


class Placement:
    """Moves parameters, gradients and state between devices and the host.

    Attributes:
        state_device: ``"host"`` if the state lives in host memory, None if it does beside the
            parameters.
    """

    def __init__(self) -> None:
        self.state_device: str | None = None
        self._host_memory: HostMemory | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"state_device": self.state_device, "_host_memory": None}

    @property
    def host_memory(self) -> HostMemory:
        """Pinned memory for the state of parameters on GPUs, while it lives on the host."""
        if self._host_memory is None:
            self._host_memory = HostMemory()
        return self._host_memory

    def home_of_state(self, param: Any) -> str:
        """Return the device on which the state of a parameter belongs."""
        return "cpu" if self.state_device == HOST else home_of(param)

    def move(self, params: Sequence[Any], state: State, device: str) -> None:
        """Move everything to a device; nothing unless everything fits there."""
        state_target = "cpu" if self.state_device == HOST else device

        def copy(array: Any) -> Any:
            return transfer.to(array, device)

        moved_params = [
            (param, copy_tree(param.data, copy, "data"), copy_tree(param.grad, copy, "grad"))
            for param in params
        ]
        moved = _moved(state, lambda _param, _name, array: transfer.to(array, state_target))
        for param, data, grad in moved_params:
            if isinstance(param, Parameter):
                param.rehome(data, grad)
            else:
                param.data, param.grad = data, grad
        _install(moved)

    def offload(self, state: State, block: bool) -> None:
        """Move the state of parameters on GPUs to pinned host memory."""
        groups: dict[tuple[str, Any, str], dict[int, Any]] = {}
        for name, array in _arrays_of_gpus(state):
            if is_cupy(array):
                key = (device_of(array), array.dtype, name)
                groups.setdefault(key, {})[id(array)] = array
        targets: dict[int, Any] = {}
        for own in groups.values():
            targets |= zip(own, self.host_memory.lend(list(own.values())), strict=True)
        self.host_memory.trim()
        pairs = [
            (contiguous(array, transfer.layout(array)), targets[key])
            for own in groups.values()
            for key, array in own.items()
        ]
        moved = _moved(state, lambda _param, _name, array: targets.get(id(array), array))
        copies = Copies(pairs)
        _install(moved)
        self.state_device = HOST
        if block:
            copies.wait()
        else:
            state.expect(copies.wait)

    def reload(self, state: State, block: bool) -> None:
        """Bring the state of parameters on GPUs back to them."""
        pairs: list[tuple[Any, Any]] = []
        targets: dict[int, Any] = {}

        def fetch(param: Any, _name: str, array: Any) -> Any:
            home = home_of(param)
            if home == "cpu" or is_cupy(array):
                return array
            if id(array) not in targets:
                targets[id(array)] = _room_for(array, home, pairs)
            return targets[id(array)]

        moved = _moved(state, fetch)
        copies = Copies(pairs)
        _install(moved)
        self.state_device = None

        def arrive() -> bool:
            copies.hold_back()
            return copies.are_done

        state.expect(arrive)
        if block:
            copies.wait()

    def is_state_beside(self, state: State) -> bool:
        """Say whether the state of parameters on GPUs is on these GPUs."""
        return self.state_device != HOST or all(
            is_cupy(array) for _, array in _arrays_of_gpus(state)
        )


def home_of(param: Any) -> str:
    """Return the device of a parameter; of text, the CPU."""
    if torch_tensors.is_tensor(param):
        return torch_tensors.home(param)
    array = as_array(param.data)
    return "cpu" if array is None else device_of(array)


def _arrays_of_gpus(state: State) -> list[tuple[str, Any]]:
    """Return the arrays in the state of parameters on GPUs, with the names of their slots."""
    with state.settled():
        return [
            (name, array)
            for param, slots in state.items()
            if home_of(param) != "cpu"
            for name, value in slots.items()
            for array in arrays_in(value)
        ]


def _moved(
    state: State, move: Callable[[Any, str, Any], Any]
) -> list[tuple[Slots, dict[str, Any]]]:
    """Return what each slot will hold, with ``move(param, slot, array)`` for its arrays."""
    with state.settled():
        return [
            (
                slots,
                {
                    name: copy_tree(value, partial(move, param, name), name)
                    for name, value in slots.items()
                    if any(True for _ in arrays_in(value))
                },
            )
            for param, slots in state.items()
        ]


def _install(moved: list[tuple[Slots, dict[str, Any]]]) -> None:
    for slots, values in moved:
        slots.update(values)


def _room_for(array: np.ndarray[Any, Any], home: str, pairs: list[tuple[Any, Any]]) -> Any:
    """Return a device array for a host array, with its values or noted in ``pairs`` to get them."""
    if not (array.size and common_layout([array]) and transfer.is_pinned(array)):
        return transfer.copy(array, home)
    with gpu.on(home):
        order = transfer.layout(array)
        target = gpu.cupy().empty(array.shape, array.dtype, order=order)
    pairs.append((array, target))
    return target
