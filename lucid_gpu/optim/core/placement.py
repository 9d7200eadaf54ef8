"""Placed: where the arrays of an optimizer live, and how they get from there to elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import as_array, device_of, is_cupy
from lucid_gpu.device.overlap import Copies, contiguous
from lucid_gpu.execution.plan import common_layout
from lucid_gpu.optim.core.host_memory import HostMemory
from lucid_gpu.optim.core.state import Slots, State
from lucid_gpu.optim.core.tree import arrays_in, copy_tree
from lucid_gpu.parameter import Parameter

HOST = "host"


class Placed:
    """The part of an optimizer that moves its arrays between devices and the host."""

    streams_state: ClassVar[bool] = False
    """Whether a step can bring the state of parameters on a GPU from the host and back."""

    param_groups: list[dict[str, Any]]
    state: State

    def _init_places(self) -> None:
        self._state_device: str | None = None
        self._host_memory: HostMemory | None = None

    @property
    def state_device(self) -> str | None:
        """``"host"`` if the state lives in host memory, None if it does beside the parameters."""
        return self._state_device

    @property
    def host_memory(self) -> HostMemory:
        """Pinned memory for the state of parameters on GPUs, while it lives on the host."""
        if self._host_memory is None:
            self._host_memory = HostMemory()
        return self._host_memory

    def home_of_state(self, param: Any) -> str:
        """Return the device on which the state of a parameter belongs."""
        return "cpu" if self._state_device == HOST else _home(param)

    def to(self, device: str) -> Self:
        """Move parameters, gradients and state to a device, through pinned memory.

        Parameters, groups and state keep their identity; arrays get new homes. Nothing is moved
        unless everything fits there. State that is on the host, by ``state_device="host"`` or
        :meth:`offload`, stays there.

        Args:
            device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

        Returns:
            The optimizer.

        Raises:
            ValueError: ``device`` is unknown.
            lucid_gpu.device.DeviceUnavailableError: ``device`` is a GPU that cannot be used.
        """
        target = gpu.resolve(device)
        state_target = "cpu" if self._state_device == HOST else target

        def move(array: Any) -> Any:
            return transfer.to(array, target)

        params = [
            (param, copy_tree(param.data, move, "data"), copy_tree(param.grad, move, "grad"))
            for param in self._params()
        ]
        moved = self._moved(lambda _param, _name, array: transfer.to(array, state_target))
        for param, data, grad in params:
            if isinstance(param, Parameter):
                param.rehome(data, grad)
            else:
                param.data, param.grad = data, grad
        self._install(moved)
        return self

    def offload(self, block: bool = False) -> None:
        """Move the state of parameters on GPUs to pinned host memory, and free its device memory.

        For those who need the GPU for something else between phases of training. The copies run
        beside the current streams, after what is on them now, so that other work overlaps with
        them; reading a slot waits for its arrival. The memory goes back to CuPy's pool when the
        copies are done; ``cupy.get_default_memory_pool().free_all_blocks()`` hands it on to other
        libraries. The host memory is kept for the next time: the first call takes longer, because
        it allocates it, and so does one that finds it still read by a :meth:`reload`. State of
        parameters on the CPU stays.

        A fused optimizer can step all the same: see ``state_device`` of its constructor, which is
        the same place from the start. Others need :meth:`reload` first. Graphs that captured a
        step must be captured anew after it.

        Args:
            block: True waits until the copies are done and the memory is free.

        Raises:
            RuntimeError: a current stream records a CUDA graph.

        Example:
            >>> from lucid_gpu import Parameter
            >>> from lucid_gpu.optim import Adam
            >>> def alternate(optimizer, generate, train):
            ...     optimizer.offload()
            ...     generate()
            ...     optimizer.reload()
            ...     train()
            >>> optimizer = Adam([Parameter([1.0])])
            >>> alternate(optimizer, generate=optimizer.explain, train=optimizer.step)
            Adam: one step of 0 parameters
            no gradient, so no step: '0.0'
        """
        self._refuse_capture("offload")
        groups: dict[tuple[str, Any, str], dict[int, Any]] = {}
        for name, array in self._arrays_of_gpus():
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
        moved = self._moved(lambda _param, _name, array: targets.get(id(array), array))
        copies = Copies(pairs, keep=True)
        self._install(moved)
        self._state_device = HOST
        if block:
            copies.wait()
        else:
            self.state.expect(copies.wait)

    def reload(self, block: bool = False) -> None:
        """Bring the state of parameters on GPUs back to them: the reverse of :meth:`offload`.

        The copies run beside the current streams, after what is on them now; whoever needs the
        state, such as the next step, comes after them without holding the host. The host waits for
        an :meth:`offload` or a step that is still under way, and for state that was loaded since,
        which is not pinned.

        Args:
            block: True waits until the copies are done.

        Raises:
            RuntimeError: a current stream records a CUDA graph.
        """
        self._refuse_capture("reload")
        pairs: list[tuple[Any, Any]] = []
        targets: dict[int, Any] = {}

        def fetch(param: Any, _name: str, array: Any) -> Any:
            home = _home(param)
            if home == "cpu" or is_cupy(array):
                return array
            if id(array) not in targets:
                targets[id(array)] = _room_for(array, home, pairs)
            return targets[id(array)]

        self._forget_arrays()  # the windows of a streamed step make room for the state
        moved = self._moved(fetch)
        copies = Copies(pairs, keep=True)
        self._install(moved)
        self._state_device = None

        def arrive() -> bool:
            copies.hold_back()
            return copies.are_done

        self.state.expect(arrive)
        if block:
            copies.wait()

    def require_ready(self) -> None:
        """Raise RuntimeError if the state is where a step cannot use it."""
        if self.streams_state or self._state_device != HOST:
            return
        if not all(is_cupy(array) for _, array in self._arrays_of_gpus()):
            raise RuntimeError(
                f"the state of this {type(self).__name__} is in host memory: "
                "call reload() before step()"
            )

    def _params(self) -> list[Any]:
        return [param for group in self.param_groups for param in group["params"]]

    def _refuse_capture(self, method: str) -> None:
        if gpu.is_capturing({_home(param) for param in self._params()}):
            raise RuntimeError(f"{method}() cannot be recorded in a CUDA graph: call it outside")

    def _arrays_of_gpus(self) -> list[tuple[str, Any]]:
        """Return the arrays in the state of parameters on GPUs, with the names of their slots."""
        with self.state.settled():
            return [
                (name, array)
                for param, slots in self.state.items()
                if _home(param) != "cpu"
                for name, value in slots.items()
                for array in arrays_in(value)
            ]

    def _moved(self, move: Callable[[Any, str, Any], Any]) -> list[tuple[Slots, dict[str, Any]]]:
        """Return what each slot will hold, with ``move(param, slot, array)`` for its arrays."""
        with self.state.settled():
            return [
                (
                    slots,
                    {
                        name: copy_tree(value, partial(move, param, name), name)
                        for name, value in slots.items()
                        if name != "step"
                    },
                )
                for param, slots in self.state.items()
            ]

    def _install(self, moved: list[tuple[Slots, dict[str, Any]]]) -> None:
        self._forget_arrays()
        for slots, values in moved:
            slots.update(values)

    def _forget_arrays(self) -> None:
        """Let go of what refers to the arrays that move; a subclass may."""


def _home(param: Any) -> str:
    array = as_array(param.data)
    return "cpu" if array is None else device_of(array)


def _room_for(array: np.ndarray[Any, Any], home: str, pairs: list[tuple[Any, Any]]) -> Any:
    """Return a device array for a host array, with its values or noted in ``pairs`` to get them."""
    if not (array.size and common_layout([array]) and transfer.is_pinned(array)):
        return transfer.copy(array, home)
    with gpu.on(home):
        order = transfer.layout(array)
        target = gpu.cupy().empty(array.shape, array.dtype, order=order)
    pairs.append((array, target))
    return target
