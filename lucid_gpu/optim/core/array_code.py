"""ArrayOptimizer: optimizers in array code, for what is no elementwise rule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lucid_gpu.device import gpu, torch_tensors, transfer
from lucid_gpu.device.arrays import address, device_of, is_array, kind_of
from lucid_gpu.execution import formats
from lucid_gpu.execution.rule import no_fills
from lucid_gpu.optim.core import masters
from lucid_gpu.optim.core import slots as making
from lucid_gpu.optim.core.optimizer import Optimizer, evaluate
from lucid_gpu.optim.core.tensors import (
    Declared,
    Tensor,
    computing,
    numeric,
    require_slots,
    slot_problems,
    unstrange,
)


class ArrayOptimizer(Optimizer):
    """An optimizer whose update is array code, the same for NumPy and CuPy.

    A subclass declares its slots and writes :meth:`update`; groups, checks, state, devices and the
    order of a step are this class's business. It has as many launches as its array code makes, and
    cannot be recorded in a CUDA graph.

    A parameter of bfloat16 or float16 has its exact value in a float32 slot ``master``, which is
    what is updated, with the gradient and all slots in float32; the parameter is that value,
    rounded to the nearest.

    Attributes:
        slots: the names of the arrays that it keeps beside a parameter, of the dtype that is
            updated, and of its shape unless :meth:`slot_shapes` says otherwise; they begin with
            zeros, or as :meth:`fills` says.
        widens: False for a subclass that refuses parameters of 16 bits.

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
    widens = True
    _written: Mapping[int, _Written] | None = None
    """What the last step of each parameter with a master left, by the id of the parameter."""

    _scale: Any = None
    """What the gradients of the step at hand are divided by."""

    _transient: ClassVar[dict[str, Any]] = {
        **Optimizer._transient,  # noqa: SLF001 - of the base class
        "_written": None,
        "_scale": None,
    }

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
            param: its array, or its exact value, to be written to.
            grad: its gradient in the dtype of ``param``, not to be changed.
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
            TypeError: a parameter is of a dtype that cannot be trained.
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
            self._update(tensor, t)
            slots["step"] = t
            torch_tensors.note_write(tensor.param)
        self._is_torn = False
        self._written = {**(self._written or {}), **_masters(tensors)}
        return result

    @contextlib.contextmanager
    def divided_by(self, scale: Any) -> Iterator[None]:
        """Divide the gradients of steps inside a ``with`` block, once they are widened.

        Args:
            scale: a float32 array of one element.
        """
        self._scale = scale
        try:
            yield
        finally:
            self._scale = None

    def _gradient(self, tensor: Tensor, dtype: np.dtype[Any]) -> Any:
        """Return the gradient of a parameter in the dtype that is updated, without a scale."""
        grad = making.cast(tensor.grad, dtype) if self.widens else tensor.grad
        if self._scale is None:
            return grad
        scale = transfer.to(self._scale, device_of(tensor.data)).astype(np.float64)
        return grad * (1 / scale).astype(np.float32).reshape(())

    def _update(self, tensor: Tensor, t: int) -> None:
        """Update a parameter, or its exact value and then the parameter."""
        home, arrays = device_of(tensor.data), dict(tensor.slots or {})
        exact = arrays.pop("master", tensor.data)
        with gpu.on(home), np.errstate(all="ignore"):  # as on a GPU, which does not warn
            grad = self._gradient(tensor, exact.dtype)
            options = self.param_groups[tensor.group]
            self.update(gpu.module(home), exact, grad, arrays, options, t)
            if exact is not tensor.data:
                making.fill_slot(tensor.data, exact)

    def declared_slots(self) -> dict[str, Declared]:
        """Return the slots that the state of a parameter may have."""
        return {
            "step": Declared("count", is_required=True),
            **dict.fromkeys(self.slots, Declared("state")),
            **({"master": Declared("float32")} if self.widens else {}),
        }

    def slot_problems(self, param: Any, slots: Mapping[str, Any]) -> list[str]:
        """Return, in words, why ``slots`` cannot be loaded as the state of ``param``."""
        data = unstrange(param.data)
        if not is_array(data):
            return [f"its parameter holds a {kind_of(data)}, not a NumPy or CuPy array"]
        shapes = self.slot_shapes(self.saved_options(slots), data.shape)
        declared = {
            "step": Declared("count", True),
            **{name: Declared("state", True, shape) for name, shape in shapes.items()},
        }
        if self.widens and data.dtype in formats.HALVES:
            declared["master"] = Declared("float32")
        return slot_problems(declared, slots, data)

    def saved_options(self, slots: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Return options that lead to the slots of a saved state, for :meth:`slot_shapes`."""
        return self.defaults

    def _require_slots(self, tensor: Tensor, options: Mapping[str, Any]) -> None:
        shapes = self._shapes(tensor, options)
        tensor.used = dict.fromkeys(shapes, computing(tensor.data.dtype))
        kept = self.state.get(tensor.param, {})
        require_slots(tensor, kept, tensor.used, False, shapes)

    def _shapes(self, tensor: Tensor, options: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        shape = tensor.data.shape
        own = self.slot_shapes(options, shape)
        return {**own, "master": shape} if tensor.data.dtype in formats.HALVES else own

    def _provide_slots(self, tensors: list[Tensor]) -> None:
        """Give every tensor the slots that its step uses; those that it lacks are made."""
        stale = {tensor.position: tensor.name for tensor in tensors if self._is_stale(tensor)}
        if stale:
            masters.warn_stale(list(stale.values()))
        for tensor in tensors:
            kept = self.state.get(tensor.param, {})
            shapes = self._shapes(tensor, self.param_groups[tensor.group])
            tensor.slots = {
                name: making.cast(kept[name], dtype) if kept.get(name) is not None else None
                for name, dtype in tensor.used.items()
            }
            if tensor.position in stale:
                tensor.slots["master"] = None
            home = device_of(tensor.data)
            for name, shape in shapes.items():
                if tensor.slots[name] is None and shape != tensor.data.shape:
                    with gpu.on(home):
                        tensor.slots[name] = gpu.module(home).zeros(shape, tensor.used[name])
        fills = [{**self.fills(group), **masters.FILLS} for group in self.param_groups]
        making.provide(tensors, fills, None)

    def _is_stale(self, tensor: Tensor) -> bool:
        """Say whether a parameter was given other values than its master has.

        Which waits for the device, and so only where one of them is another array than was written.
        """
        master = self.state.get(tensor.param, {}).get("master")
        if master is None or "master" not in tensor.used:
            return False
        written = (self._written or {}).get(id(tensor.param))
        if written is not None and written.holds(tensor.data, master):
            return False
        return making.is_stale(master, tensor.data)

    def _forget_arrays(self) -> None:
        self._written = None

    def _storage_of(self, group: Mapping[str, Any]) -> str:
        dtypes = {
            data.dtype for param in group["params"] if (data := numeric(param.data)) is not None
        }
        told = [
            f"{dtype} with master float32, state float32"
            for dtype in sorted(dtypes & set(formats.HALVES), key=str)
        ]
        return f", stored as {' and '.join(told)}" if told and self.widens else ""


class _Written(NamedTuple):
    """What a step wrote.

    Attributes:
        data: the array of the parameter.
        master: its exact value.
        versions: tell whether others have written to it, if it is a tensor of PyTorch.
    """

    data: Any
    master: Any
    versions: torch_tensors.Versions | None

    def holds(self, data: Any, master: Any) -> bool:
        """Say whether it is what was written, as far as can be told without looking at values."""
        is_same = self.master is master and address(self.data) == address(data)
        return is_same and (self.versions is None or not self.versions.have_changed())


def _masters(tensors: list[Tensor]) -> dict[int, _Written]:
    """Return what was written, of each parameter that has a master."""
    return {
        id(tensor.param): _Written(tensor.data, tensor.slots["master"], _versions(tensor.param))
        for tensor in tensors
        if tensor.slots and "master" in tensor.slots
    }


def _versions(param: Any) -> torch_tensors.Versions | None:
    return torch_tensors.Versions([param]) if torch_tensors.is_tensor(param) else None
