"""Tensors of PyTorch as arrays that share their memory, and by address.

PyTorch is not imported here: whoever hands a tensor in has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import ml_dtypes
import numpy as np

from lucid_gpu.device import gpu

_version_of = attrgetter("_version")


def module() -> Any:
    """Return PyTorch, which somebody has imported."""
    return sys.modules["torch"]


def is_tensor(value: object) -> bool:
    """Say whether a value is a tensor of PyTorch, without importing it."""
    kind = getattr(sys.modules.get("torch"), "Tensor", None)
    return kind is not None and isinstance(value, kind)


def is_distributed(tensor: Any) -> bool:
    """Say whether a tensor is a ``DTensor``, of which each process has a part."""
    return hasattr(tensor, "to_local") and hasattr(tensor, "placements")


def local(tensor: Any) -> Any:
    """Return the part of a ``DTensor`` that this process has, and any other tensor as it is."""
    if not is_distributed(tensor):
        return tensor
    with module().no_grad():  # without a step of autograd, it is the part itself
        return tensor.to_local()


def home(tensor: Any) -> str:
    """Return the device of a tensor by the name that it has here; elsewhere counts as the CPU."""
    device = tensor.device
    return f"cuda:{device.index}" if device.type == "cuda" else "cpu"


def parts(tensor: Any) -> list[Any]:
    """Return what is written with a tensor: of a ``DTensor``, also this process's part."""
    own = local(tensor)
    return [tensor] if own is tensor else [tensor, own]


def place(tensor: Any) -> Any:
    """Return what tells where a tensor lies and how: other than before if it was given other data.

    None for one that has no memory.
    """
    own = local(tensor)
    try:
        return own.data_ptr(), own.shape, own.stride(), own.dtype
    except (RuntimeError, ValueError):  # sparse, or not made yet
        return None


def as_array(tensor: Any) -> Any:
    """Return a tensor as a NumPy or CuPy array that shares its memory; None if it cannot be one.

    Of a tensor whose elements are bfloat16, the array has the dtype of that name of ``ml_dtypes``.

    Raises:
        lucid_gpu.device.DeviceUnavailableError: it is on a GPU, and CuPy is missing.
    """
    torch = module()
    try:
        own = local(tensor).detach()
        if own.layout is not torch.strided or own.device.type not in {"cpu", "cuda"}:
            return None
        is_brain_float = own.dtype is torch.bfloat16
        if is_brain_float:
            own = own.view(torch.int16)  # which both libraries know
        array = gpu.cupy().from_dlpack(own) if own.device.type == "cuda" else own.numpy()
        return array.view(ml_dtypes.bfloat16) if is_brain_float else array
    except gpu.DeviceUnavailableError:
        raise  # it says what is missing
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None  # of no type that arrays have, or without memory of its own


def from_array(array: Any) -> Any:
    """Return a NumPy or CuPy array as a tensor that shares its memory."""
    torch = module()
    is_brain_float = array.dtype == ml_dtypes.bfloat16
    if is_brain_float:
        array = array.view(np.int16)
    is_on_host = isinstance(array, np.ndarray)
    tensor = torch.from_numpy(array) if is_on_host else torch.from_dlpack(array)
    return tensor.view(torch.bfloat16) if is_brain_float else tensor


def are_any_negative(values: Sequence[Any]) -> bool:
    """Say whether the memory of a tensor holds the negative of its values; None is no such one."""
    is_negative = module().Tensor.is_neg
    try:
        return any(map(is_negative, values))  # a fifth of the time of asking one by one
    except TypeError:  # one is None
        return any(value is not None and is_negative(value) for value in values)


def resolved(tensor: Any) -> Any:
    """Return a tensor whose memory holds its values: a copy where they are the negative ones."""
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def advice(tensor: Any) -> str:
    """Return what an error says of a tensor that is no array: what is wrong with it, what to do."""
    torch = module()
    if tensor.layout is not torch.strided:
        kind = str(tensor.layout).removeprefix("torch.")
        return f" of layout {kind} (make it dense: .to_dense(), or sparse=False in nn.Embedding)"
    if tensor.is_neg():
        return " whose memory holds the negative of its values (pass its resolve_neg())"
    if tensor.device.type == "meta":
        return " on device meta, which has no memory (materialize the module with to_empty() first)"
    return f" of {tensor.dtype} on device {tensor.device} (make it float32 or float64 on cpu, cuda)"


def has_version(value: Any) -> bool:
    """Say whether PyTorch counts writes in place to a value: to tensors but those of inference."""
    return is_tensor(value) and not value.is_inference()


class Versions:
    """What PyTorch counts of writes in place to tensors, to tell those of others from one's own.

    Writes by way of ``tensor.data`` it does not count.

    Args:
        tensors: the tensors.
    """

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._tensors = list(tensors)
        self._known = self._total()

    def expect(self, writes: int) -> None:
        """Take it that so many tensors were written once."""
        self._known += writes

    def have_changed(self) -> bool:
        """Say whether any was written otherwise since this was last asked."""
        known, self._known = self._known, self._total()
        return known != self._known

    def _total(self) -> int:
        return sum(map(_version_of, self._tensors))  # each only grows


def note_write(param: Any) -> None:
    """Tell autograd that what a parameter holds was written, if it is a tensor."""
    if is_tensor(param):
        note_writes(parts(param))


def note_writes(tensors: Sequence[Any]) -> None:
    """Tell autograd that tensors were written, so that it refuses to go back through old values."""
    module().autograd.graph.increment_version(tensors)
