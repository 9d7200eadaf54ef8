"""Arrays of NumPy and CuPy: on which device they are, at which address, in which layout."""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np

from lucid_gpu.device import gpu, torch_tensors

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or a ``cupy.ndarray``; CuPy publishes no types to name here."""


PLAIN = (np.ndarray, np.memmap)
"""Types of NumPy arrays that compute as NumPy does."""


def is_cupy(value: object) -> bool:
    """Say whether ``value`` is a CuPy array, without importing CuPy."""
    module = sys.modules.get("cupy")
    return module is not None and isinstance(value, module.ndarray)


def is_masked(value: object) -> bool:
    """Say whether ``value`` is a masked array, without importing what NumPy imports on need."""
    module = sys.modules.get("numpy.ma")
    return module is not None and isinstance(value, module.MaskedArray)


def is_immutable(value: object) -> bool:
    """Say whether ``value`` is an array of JAX, which never changes, without importing that."""
    kind = getattr(sys.modules.get("jax"), "Array", None)
    return kind is not None and isinstance(value, kind)


IMMUTABLE = (
    "an array of JAX, which is immutable: pass a copy, numpy.array(x), or cupy.array(x) on a GPU"
)
"""What an error says of one."""


def is_array(value: object) -> bool:
    """Say whether ``value`` is a NumPy or CuPy array; a masked one is not, for it is two."""
    return is_cupy(value) or (isinstance(value, np.ndarray) and not is_masked(value))


def kind_of(value: object) -> str:
    """Return how an error calls what should be an array: its type, and what to do about it."""
    advice = " (whose mask would be lost: pass its .filled(value))" if is_masked(value) else ""
    if torch_tensors.is_tensor(value):
        advice = torch_tensors.advice(value)
    return type(value).__name__ + advice


def device_of(array: Array) -> str:
    """Return the name of the device that holds ``array``."""
    return f"cuda:{array.data.device_id}" if is_cupy(array) else "cpu"


def address(array: Array) -> int:
    """Return the address of the first element, in the memory of the array's device."""
    return int(array.data.ptr) if is_cupy(array) else int(array.ctypes.data)


def are_alike(array: Any, other: Array, dtype: np.dtype[Any] | None = None) -> bool:
    """Say whether two arrays have the same type, shape, device and dtype.

    Args:
        array: the one.
        other: the other.
        dtype: that the first must have; None for that of the other.
    """
    return (
        type(array) is type(other)
        and array.shape == other.shape
        and array.dtype == (other.dtype if dtype is None else dtype)
        and (type(array) in PLAIN or array.data.device_id == other.data.device_id)
    )


def as_array(value: Any) -> Array | None:
    """Return ``value`` as a NumPy or CuPy array that shares its memory, or None if it is no array.

    Tensors of PyTorch are views, and arrays of other frameworks come in through DLPack, without a
    copy. Of a subclass of NumPy's, which may compute otherwise, the result is a plain view; a
    ``memmap`` is plain already.
    """
    if type(value) in PLAIN or is_cupy(value):
        return value
    if torch_tensors.is_tensor(value):
        return torch_tensors.as_array(value)
    if isinstance(value, np.ndarray):
        return None if is_masked(value) else value.view(np.ndarray)
    if isinstance(value, np.generic):
        return np.asarray(value)
    if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
        on_host = value.__dlpack_device__()[0] in DLPACK_HOSTS
        return (np if on_host else gpu.cupy()).from_dlpack(value)
    return None


def is_writable(value: Any) -> bool:
    """Say whether the elements of an array, of whichever framework, can be assigned."""
    if is_cupy(value):
        return True
    if isinstance(value, np.ndarray):
        return bool(value.flags.writeable)
    try:
        value[...] = value
    except (TypeError, ValueError, RuntimeError):
        return False
    return True


DLPACK_HOSTS = (1, 3)
"""DLPack's device types of host memory: plain, and pinned by CUDA."""

STRIDED, C_ORDER, F_ORDER = 1, 2, 4


def contiguity(array: Array) -> int:
    """Return STRIDED, plus C_ORDER and F_ORDER for the orders in which it is contiguous."""
    flags = array.flags
    orders: int = C_ORDER * flags.c_contiguous + F_ORDER * flags.f_contiguous
    return STRIDED + orders


def zeros(home: str, shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Return zeros on a device."""
    with gpu.on(home):
        return gpu.module(home).zeros(shape, dtype)
