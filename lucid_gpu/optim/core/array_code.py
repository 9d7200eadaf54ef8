"""ArrayOptimizer: optimizers in array code, for what is no elementwise rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.device.arrays import device_of, is_array, kind_of
from lucid_gpu.execution.rule import no_fills
from lucid_gpu.optim.core import slots as making
from lucid_gpu.optim.core.optimizer import Optimizer, evaluate
from lucid_gpu.optim.core.tensors import (
    Declared,
    Tensor,
    require_slots,
    slot_problems,
    unstrange,
)


class ArrayOptimizer(Optimizer):
    """An optimizer whose update is array code, the same for NumPy and CuPy.

    A subclass declares its slots and writes :meth:`update`; groups, checks, state, devices and the
    order of a step are this class's business. It has as many launches as its array code makes, and
    cannot be recorded in a CUDA graph.

    Attributes:
        slots: the names of the arrays that it keeps beside a parameter, of the dtype of the
            parameter, and of its shape unless :meth:`slot_shapes` says otherwise; they begin with
            zeros, or as :meth:`fills` says.

    Example:
        >>> from lucid_gpu import Parameter
        >>> class SignDescent(ArrayOptimizer):
        ...     slots = ()
        ...
        ...     def __init__(self, params, lr=0.1):
        ...         super().__init__(params, {"lr": lr})
        ...
        ...     def update(self, xp, param, grad, slots, options, t):
        ...         param -= options["lr"] * xp.sign(grad)
        >>> w = Parameter([1.0, -2.0])
        >>> w.grad = w.data.copy()
        >>> SignDescent([w], lr=0.5).step()
        >>> w.numpy().tolist()
        [0.5, -1.5]
    """

    slots: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def fills(options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what slots begin with, where that is not 0: a number, or ``"param"``."""
        return no_fills(options)

    def slot_shapes(
        self,
        options: Mapping[str, Any],  # noqa: ARG002 - others' do
        shape: tuple[int, ...],
    ) -> Mapping[str, tuple[int, ...]]:
        """Return the slots that a step uses, each with its shape: all, of that of the parameter.

        Args:
            options: of the parameter's group.
            shape: of the parameter.
        """
        return dict.fromkeys(self.slots, shape)

    def update(
        self, xp: Any, param: Any, grad: Any, slots: Mapping[str, Any], options: Any, t: int
    ) -> None:
        """Update one parameter in place.

        Args:
            xp: the module of its arrays: ``numpy`` or ``cupy``.
            param: its array, to be written to.
            grad: its gradient, not to be changed.
            slots: its slots by name, to be written to.
            options: of its group.
            t: the number of this step of the parameter, from 1.
        """
        raise NotImplementedError(f"{type(self).__name__} must define update()")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: re-evaluates the model and returns the loss; called once, before the update.

        Returns:
            What ``closure`` returned; None without one.

        Raises:
            TypeError: a parameter is not made of float32 or float64.
            ValueError: an option is out of bounds, or a gradient or slot does not fit its
                parameter. Nothing was changed.
            RuntimeError: an earlier step was interrupted, another thread is stepping, the stream
                records a CUDA graph, or the data of a foreign parameter is a copy. Nothing was
                changed.
        """
        result = evaluate(closure)
        self._refuse_capture("step")
        tensors = self.stepping()
        self._provide_slots(tensors)
        self._is_torn = True
        for tensor in tensors:
            slots = self.state[tensor.param]
            slots.update(tensor.slots or {})
            t = slots.get("step", 0) + 1
            home = device_of(tensor.data)
            with gpu.on(home), np.errstate(all="ignore"):  # as on a GPU, which does not warn
                self.update(
                    gpu.module(home),
                    tensor.data,
                    tensor.grad,
                    tensor.slots or {},
                    self.param_groups[tensor.group],
                    t,
                )
            slots["step"] = t
            if torch_tensors.is_tensor(tensor.param):
                torch_tensors.note_writes(torch_tensors.parts(tensor.param))
        self._is_torn = False
        return result

    def declared_slots(self) -> dict[str, Declared]:
        """Return the slots that the state of a parameter may have."""
        return {
            "step": Declared("count", is_required=True),
            **dict.fromkeys(self.slots, Declared("array")),
        }

    def slot_problems(self, param: Any, slots: Mapping[str, Any]) -> list[str]:
        """Return, in words, why ``slots`` cannot be loaded as the state of ``param``."""
        data = unstrange(param.data)
        if not is_array(data):
            return [f"its parameter holds a {kind_of(data)}, not a NumPy or CuPy array"]
        shapes = self.slot_shapes(self.saved_options(slots), data.shape)
        arrays = {name: Declared("array", True, shape) for name, shape in shapes.items()}
        return slot_problems({"step": Declared("count", True), **arrays}, slots, data)

    def saved_options(self, slots: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return options that lead to the slots of a saved state, for :meth:`slot_shapes`."""
        return self.defaults

    def _require_slots(self, tensor: Tensor, options: Mapping[str, Any]) -> None:
        shapes = self.slot_shapes(options, tensor.data.shape)
        kept = self.state.get(tensor.param, {})
        require_slots(tensor, kept, dict.fromkeys(shapes), False, shapes)

    def _provide_slots(self, tensors: list[Tensor]) -> None:
        """Give every tensor the slots that its step uses; those that it lacks are made."""
        for tensor in tensors:
            kept = self.state.get(tensor.param, {})
            shapes = self.slot_shapes(self.param_groups[tensor.group], tensor.data.shape)
            tensor.slots = {name: kept.get(name) for name in shapes}
            home = device_of(tensor.data)
            for name, shape in shapes.items():
                if tensor.slots[name] is None and shape != tensor.data.shape:
                    with gpu.on(home):
                        tensor.slots[name] = gpu.module(home).zeros(shape, tensor.data.dtype)
        making.provide(tensors, [self.fills(group) for group in self.param_groups], None)
