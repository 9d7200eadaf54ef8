"""FlatVector: parameters and their gradients end to end, for what treats them as one vector."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lucid_gpu.device import gpu, torch_tensors, transfer
from lucid_gpu.device.arrays import device_of
from lucid_gpu.optim.core.tensors import Tensor, misfits, require, require_apart, unstrange


class FlatVector:
    """The elements of parameters as one vector.

    Args:
        tensors: the parameters, in order.

    Attributes:
        home: the device of all.
        xp: the module of its arrays.
        dtype: of all.
        members: the name and size of each.

    Raises:
        ValueError: they are on several devices, of several dtypes, or share memory.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        first = tensors[0]
        for tensor in tensors:
            what = f"parameter {tensor.name!r}"
            for kind, have, want in (
                ("is on", device_of(tensor.data), device_of(first.data)),
                ("has dtype", tensor.data.dtype, first.data.dtype),
            ):
                if have != want:
                    raise ValueError(
                        f"{what} {kind} {have}, but {first.name!r} {kind} {want}: all parameters "
                        "are one vector, so give others an optimizer of their own"
                    )
        require_apart(tensors)
        self._tensors = tensors
        self.home, self.dtype = device_of(first.data), first.data.dtype
        self.xp = gpu.module(self.home)
        self.members = [[tensor.name, tensor.data.size] for tensor in tensors]
        self.size = sum(tensor.data.size for tensor in tensors)

    def data(self) -> Any:
        """Return a copy of all elements."""
        with gpu.on(self.home):
            return self.xp.concatenate([tensor.data.reshape(-1) for tensor in self._tensors])

    def gradient(self) -> Any:
        """Return a copy of all gradients, with zeros where there is none.

        Raises:
            ValueError: one does not fit its parameter.
        """
        parts = []
        for tensor in self._tensors:
            grad = unstrange(tensor.param.grad)
            if grad is None:
                parts.append(self.xp.zeros(tensor.data.size, self.dtype))
            else:
                require(misfits(f"the gradient of parameter {tensor.name!r}", grad, tensor.data))
                parts.append(grad.reshape(-1))
        return self.xp.concatenate(parts)

    def put(self, elements: Any) -> None:
        """Overwrite all parameters."""
        ends = np.cumsum([0, *(size for _, size in self.members)]).tolist()
        with gpu.on(self.home):
            for tensor, (start, stop) in zip(self._tensors, pairwise(ends), strict=True):
                tensor.data[...] = elements[start:stop].reshape(tensor.data.shape)
                torch_tensors.note_write(tensor.param)

    def numbers(self, *values: Any) -> list[float]:
        """Return numbers of the device as Python's, all of them in one copy."""
        found: list[float] = transfer.to(self.xp.stack(values), "cpu").tolist()
        return found
