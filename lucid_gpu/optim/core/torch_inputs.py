"""TorchInputs: what a step reads of parameters that are tensors of PyTorch, by their addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from operator import ne
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import torch_tensors
from lucid_gpu.device.arrays import C_ORDER, STRIDED, as_array, contiguity, is_array
from lucid_gpu.device.gradient_table import ABSENT
from lucid_gpu.execution.tensor_look import KINDS, Changes, Found, TensorLook
from lucid_gpu.optim.core.inputs import Inputs
from lucid_gpu.optim.core.storing import gradient_dtype

DENSE = STRIDED | C_ORDER


class TorchInputs(Inputs):
    """Inputs whose parameters are all tensors.

    ``data`` is another object whenever PyTorch is asked for it, and a view of one takes longer than
    a launch. So a step looks at addresses, and makes views of what has moved: in compiled code,
    which sees other shapes, strides and dtypes at no cost, or, without it, from Python.

    Axes of the views are in the order of memory, so that a tensor in ``channels_last`` is
    contiguous in the eyes of a step.

    Args:
        groups: the groups.
        keys: the options that every group has.
    """

    def __init__(self, groups: Sequence[dict[str, Any]], keys: Sequence[str]) -> None:
        super().__init__(groups, keys)
        self.tell_addresses = True
        torch = torch_tensors.module()
        self._compiled = _look_at(torch.Tensor)
        self._address_of, self._is_contiguous = torch.Tensor.data_ptr, torch.Tensor.is_contiguous
        self._are_whole = not any(map(torch_tensors.is_distributed, self.params))
        count = len(self.params)
        self._axes: list[list[int] | None] = [None] * count
        self._dense = np.full(count, STRIDED, np.uint8)
        self._low_bits = np.zeros(count, np.uint64)
        self._is_empty = np.zeros(count, np.bool_)
        self._odd: set[int] = set()
        tensors = self._tensors_now()
        arrays = [*map(as_array, tensors)]
        self._readable = [i for i, array in enumerate(arrays) if array is not None]
        self._are_readable = len(self._readable) == count
        # Of more elements, a gradient whose sign PyTorch has put off is not contiguous.
        self._may_be_negative = [
            i for i, array in enumerate(arrays) if array is not None and array.size == 1
        ]
        self._types = self._gradient_types(arrays)
        self._made_of = [own and getattr(torch, own.name, None) for own in self._types]
        kinds = [
            KINDS[own.name] if own is not None and array is not None and own != array.dtype else 0
            for own, array in zip(self._types, arrays, strict=True)
        ]
        self._found, self._before = Found(count, kinds), Found(count, kinds)
        self._changes: Changes | None = None
        self._layouts_now: npt.NDArray[np.uint8] | None = None  # the same object while they stay
        self._pending: list[Any] | None = None
        for position, tensor in enumerate(tensors):
            self._meet(position, tensor)
        self._places, self._shapes = self._look(tensors)
        self._are_prints_known = self._look_compiled(tensors) is not None
        self._pending = None

    def take_data(self) -> list[int]:
        """Look at all parameters and return the positions of those that hold other data."""
        tensors = self._tensors_now()
        self._changes = self._look_compiled(tensors)
        if self._changes is None:
            now, shapes = self._look(tensors)
            have_moved = now != self._places
            if shapes != self._shapes:
                have_moved |= [*map(ne, shapes, self._shapes)]
                self._shapes = shapes
        elif not self._changes.tensors:
            if self._changes.layouts:
                self._layouts_now = None
            return []
        else:
            now = self._found.places
            have_moved = now != self._places
            if self._are_prints_known:
                have_moved |= self._found.prints != self._before.prints
            self._are_prints_known = True
        self._places, self._layouts_now = now.copy(), None
        moved = [self._readable[i] for i in np.flatnonzero(have_moved).tolist()]
        for position in moved:
            self._meet(position, tensors[position])
        return moved

    def gradients_may_have_moved(self) -> bool:
        """Say whether gradients may have moved since the last look, for all that is known."""
        return self._changes is None or any(self._changes)

    def hold(self, are_read: bool) -> list[Any]:  # noqa: ARG002 - memory of tensors is not CuPy's
        """Return the gradients as they are, parts of them where they are distributed."""
        held, self._pending = self._pending, None
        return self._grads() if held is None else held

    def gradients(self, held: Sequence[Any] = ()) -> list[Any]:
        """Return the gradient of each parameter, with its axes in the order of the parameter's."""
        return [
            None if grad is None else self._view(position, grad)
            for position, grad in enumerate(held or self._grads())
        ]

    def noted_gradients(
        self, held: Sequence[Any]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        """Return addresses and layouts of gradients."""
        if self._changes is not None:
            if self._layouts_now is None:
                self._layouts_now = np.minimum(self._found.layouts, self._dense)
            return self._found.addresses, self._layouts_now
        try:
            addresses = np.fromiter(map(self._address_of, held), np.uint64, len(held))
            are_plain = not self._odd and all(map(self._is_contiguous, held))
            is_alike = are_plain and [grad.dtype for grad in held] == self._made_of
            layouts = self._dense if is_alike else self._layouts(held)
        except (TypeError, RuntimeError):  # one is None, or has no address
            return self._one_by_one(held)
        # No address, although there are elements, must not be taken for no gradient.
        strange = ((addresses == 0) & ~self._is_empty) | ((addresses & self._low_bits) != 0)
        return addresses, np.where(strange, STRIDED, layouts) if strange.any() else layouts

    def have_other_types(self) -> bool:
        """Say whether gradients are asked to have other dtypes than when this was made."""
        return self._gradient_types(self.data) != self._types

    def arrays(self, position: int, slots: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return slots as arrays, with their axes in the order of the parameter's."""
        return {name: self._view(position, value) for name, value in slots.items()}

    def kept(self, position: int, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return arrays with their axes as PyTorch numbers them."""
        axes = self._axes[position]
        back = None if axes is None else np.argsort(axes).tolist()
        return {n: array if back is None else array.transpose(back) for n, array in arrays.items()}

    def tell_writes(self, written: npt.NDArray[np.bool_]) -> None:
        """Tell autograd that a step has written to some parameters."""
        own = self.params if written.all() else [self.params[i] for i in np.flatnonzero(written)]
        if not self._are_whole:
            own = [part for tensor in own for part in torch_tensors.parts(tensor)]
        if own:
            torch_tensors.note_writes(own)

    def _read_data(self) -> list[Any]:
        return [None] * len(self.params)  # read one by one, once their axes are known

    def _tensors_now(self) -> list[Any]:
        return self.params if self._are_whole else [*map(torch_tensors.local, self.params)]

    def _grads(self) -> list[Any]:
        grads = [param.grad for param in self.params]
        own = self._may_be_negative
        if torch_tensors.are_any_negative(
            grads if len(own) == len(grads) else [grads[i] for i in own]
        ):
            for position in own:
                if grads[position] is not None:
                    grads[position] = torch_tensors.resolved(grads[position])
        return grads if self._are_whole else [*map(self._part, range(len(grads)), grads)]

    def _look(self, tensors: Sequence[Any]) -> tuple[npt.NDArray[np.uint64], list[Any]]:
        """Return addresses, and shapes with strides, of the tensors that can be read."""
        if not self._are_readable:
            tensors = [tensors[position] for position in self._readable]
        places = np.fromiter(map(self._address_of, tensors), np.uint64, len(tensors))
        return places, [(tensor.shape, tensor.stride()) for tensor in tensors]

    def _look_compiled(self, tensors: Sequence[Any]) -> Changes | None:
        """Look at parameters and gradients in compiled code; None if there is none for them."""
        if not (self._are_readable and self._compiled.is_ready()):
            return None
        self._pending = grads = self._grads()
        found, before = self._before, self._found
        try:
            changes = self._compiled.look(tensors, grads, before, found)
        except (RuntimeError, TypeError, ValueError, BufferError):
            return None  # whoever looks at them one by one says by name which it was
        self._found, self._before = found, before
        return changes

    def _gradient_types(self, arrays: Sequence[Any]) -> list[Any]:
        return [
            gradient_dtype(param, array.dtype) if is_array(array) else None
            for param, array in zip(self.params, arrays, strict=True)
        ]

    def _meet(self, position: int, tensor: Any) -> None:
        """Note what a parameter holds that has come to another address."""
        self._axes[position] = _axes_in_memory(tensor) if position in self._readable else None
        self.data[position] = data = self._view(position, tensor)
        is_array = data is not tensor
        self._dense[position] = STRIDED | (contiguity(data) & C_ORDER if is_array else 0)
        self._low_bits[position] = self._types[position].itemsize - 1 if is_array else 0
        self._is_empty[position] = is_array and data.size == 0
        if self._axes[position] is None and self._dense[position] == DENSE:
            self._odd.discard(position)
        else:
            self._odd.add(position)

    def _view(self, position: int, value: Any) -> Any:
        """Return what belongs to a parameter as an array, and what is no tensor as it is."""
        axes = self._axes[position]
        array = as_array(value)
        if array is None:
            return value
        fits = axes is not None and array.ndim == len(axes)
        return array.transpose(axes) if fits else array

    def _layouts(self, held: Sequence[Any]) -> npt.NDArray[np.uint8]:
        are_dense = np.array([*map(self._is_dense, range(len(held)), held)], np.bool_)
        layouts = np.where(are_dense, np.uint8(DENSE), np.uint8(STRIDED))
        for position in {*np.flatnonzero(~are_dense).tolist(), *self._odd}:
            layouts[position] = self._layout(position, held[position])
        return layouts

    def _is_dense(self, position: int, grad: Any) -> bool:
        return grad.dtype is self._made_of[position] and self._is_contiguous(grad)

    def _layout(self, position: int, grad: Any) -> int:
        """Return the layout of a gradient; STRIDED for one that has to be looked at closer."""
        array = self._view(position, grad)
        is_alike = array is not grad and array.dtype == self._types[position]
        return contiguity(array) if is_alike else STRIDED

    def _one_by_one(
        self, held: Sequence[Any]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        addresses = np.zeros(len(held), np.uint64)
        layouts = np.full(len(held), ABSENT, np.uint8)
        for position, grad in enumerate(held):
            if grad is None:
                continue
            layouts[position] = STRIDED
            place = torch_tensors.place(grad)
            if place is None or place[0] & int(self._low_bits[position]):
                continue
            if place[0] or self._is_empty[position]:
                addresses[position] = place[0]
                is_plain = position not in self._odd and self._is_dense(position, grad)
                layouts[position] = DENSE if is_plain else self._layout(position, grad)
        return addresses, layouts

    def _part(self, position: int, grad: Any) -> Any:
        """Return the part of a gradient that this process has.

        Raises:
            ValueError: it is distributed otherwise than its parameter.
        """
        param = self.params[position]
        if grad is None:
            return None
        if torch_tensors.is_distributed(param) and torch_tensors.is_distributed(grad):
            have, want = grad.placements, param.placements
            if have != want or grad.device_mesh != param.device_mesh:
                raise ValueError(
                    f"the gradient of parameter {self.names[position]!r} has placements {have}, "
                    f"but the parameter has {want}: redistribute() it to those"
                )
        return torch_tensors.local(grad)


@cache
def _look_at(kind: type[Any]) -> TensorLook:
    return TensorLook(kind)


def _axes_in_memory(tensor: Any) -> list[int] | None:
    """Return the axes of a dense tensor from the slowest to the fastest; None if that is as is."""
    if tensor.is_contiguous():
        return None
    strides = tensor.stride()
    axes = sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], tensor.shape[axis]))
    return axes if tensor.permute(axes).is_contiguous() else None
