"""Devices: the only room of the package that touches CuPy."""

from lucid_gpu.device.arrays import Array, as_array, device_of, is_array, is_cupy
from lucid_gpu.device.gpu import (
    DeviceUnavailableError,
    count,
    default,
    resolve,
    why_unavailable,
)

__all__ = [
    "Array",
    "DeviceUnavailableError",
    "as_array",
    "count",
    "default",
    "device_of",
    "is_array",
    "is_cupy",
    "resolve",
    "why_unavailable",
]
