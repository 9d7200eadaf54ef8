"""Placed: the part of an optimizer that says where its arrays are, and moves them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.optim.core.placement import Placement, home_of
from lucid_gpu.optim.core.state import State


class Placed:
    """What an optimizer offers of its :class:`Placement`."""

    param_groups: list[dict[str, Any]]
    state: State
    _placement: Placement

    def require_whole(self) -> None:
        """Raise if groups or state were edited so that they cannot be used; a subclass knows."""

    @property
    def state_device(self) -> str | None:
        """``"host"`` if the state lives in host memory, None if it does beside the parameters."""
        return self._placement.state_device

    def home_of_state(self, param: Any) -> str:
        """Return the device on which the state of a parameter belongs."""
        return self._placement.home_of_state(param)

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
            TypeError: a parameter is a tensor of PyTorch, which that moves.
            ValueError: ``device`` is unknown.
            lucid_gpu.device.DeviceUnavailableError: ``device`` is a GPU that cannot be used.
            RuntimeError: a current stream records a CUDA graph.
        """
        target = gpu.resolve(device)
        if any(map(torch_tensors.is_tensor, self._params())):
            raise TypeError(
                f"{type(self).__name__}.to() cannot move tensors of PyTorch: move the module with "
                "module.to(device), make an optimizer of its parameters, and load the state dict "
                "of this one"
            )
        self._refuse_capture("to", {target})
        self._placement.move(self._params(), self.state, target)
        self._forget_arrays()
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
        self._placement.offload(self.state, block)
        self._forget_arrays()

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
        self._forget_arrays()  # the windows of a streamed step make room for the state
        self._placement.reload(self.state, block)

    def _params(self) -> list[Any]:
        return [param for group in self.param_groups for param in group["params"]]

    def _homes(self) -> set[str]:
        """The devices on which parameters are."""
        return set(map(home_of, self._params()))

    def _refuse_capture(self, method: str, more: Iterable[str] = ()) -> None:
        self.require_whole()
        gpu.refuse_capture(method, {*self._homes(), *more})

    def _forget_arrays(self) -> None:
        """Let go of what refers to the arrays that move; a subclass may."""
