"""Looks at tensors of PyTorch in compiled code, by the C functions that they offer for it.

One call from Python takes as long for an address alone as C does for address, shape, strides, dtype
and device. A step that asks for all of them notices whatever has become of a tensor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu.execution import building
from lucid_gpu.execution.cpu_code import cpu_code
from lucid_gpu.execution.sources import joined

API = "__dlpack_c_exchange_api__"
"""Where a type of tensors keeps its table of C functions: DLPack 1.3."""

CAPSULE = b"dlpack_exchange_api"

MAJOR = 1

ITEMS = tuple.__basicsize__
"""Behind so many bytes of a tuple its items begin."""

LOOK = ctypes.PYFUNCTYPE(
    ctypes.c_longlong,
    *[ctypes.c_void_p] * 4,
    ctypes.c_longlong,
    *[ctypes.c_void_p] * 2,
)
"""``look_at_tensors`` of ``kernels/tensors.cuh``; it may raise what PyTorch does."""


class _Table(ctypes.Structure):
    """``DLPackExchangeAPI`` of ``dlpack.h``, version 1."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        *[(name, ctypes.c_void_p) for name in ("older", "allocate", "manage", "wrap", "describe")],
    ]


KINDS = {"float16": 0x210, "bfloat16": 0x410, "float32": 0x220, "float64": 0x240}
"""DLPack's code of a type times 256, and how many bits it has."""


class Found:
    """Where tensors and their gradients were found, and how.

    Args:
        count: of the tensors.
        kinds: of each, what its gradient is to be made of, one of :data:`KINDS`; 0 for what the
            tensor is made of. None for that of all.

    Attributes:
        places: the address of each tensor.
        prints: of each, a number for its shape, strides, dtype and device.
        addresses: of the gradients; 0 for None.
        layouts: of the gradients: 0 for None, 3 for that of its tensor if it is of its kind,
            else 1.
        place: the address of a table of the addresses of these.
    """

    def __init__(self, count: int, kinds: Sequence[int] | None = None) -> None:
        self.places, self.prints, self.addresses = np.zeros((3, count), np.uint64)
        self.layouts = np.zeros(count, np.uint8)
        self._kinds = np.array([0] * count if kinds is None else kinds, np.uint16)
        columns = self.places, self.prints, self.addresses, self.layouts, self._kinds
        self._table = np.array([column.ctypes.data for column in columns], np.uint64)
        self.place: int = self._table.ctypes.data


class Changes(NamedTuple):
    """What differs from how tensors were found before.

    Attributes:
        tensors: whether any of them does.
        addresses: whether the address of any gradient does.
        layouts: whether the layout of any gradient does.
    """

    tensors: bool
    addresses: bool
    layouts: bool


class TensorLook:
    """Looks at tensors of one type.

    Args:
        kind: the type.
    """

    def __init__(self, kind: type[Any]) -> None:
        self._describe = _describe(kind)
        self._text = joined("tensors") if self._describe else ""
        self._build: building.Build | None = None
        self._look: Any = None

    def is_ready(self) -> bool:
        """Get on with what there is to compile, and say whether it is done.

        Raises:
            ValueError: an environment variable is set to something that it cannot be.
        """
        choice = cpu_code()
        if not self._describe or choice == "numpy":
            return False
        if self._look is None:
            if self._build is None:
                self._build = building.start(self._text)
            if choice == "compiled":
                self._build.wait()
            self._build.poll()
            if self._build.library is None:
                return False
            self._look = LOOK(("look_at_tensors", self._build.library))
        return True

    def look(
        self, tensors: Sequence[Any], grads: Sequence[Any], before: Found, now: Found
    ) -> Changes:
        """Look at tensors and at the gradient of each, or None.

        Args:
            tensors: all of this type.
            grads: of each.
            before: how they were found before.
            now: is filled.

        Raises:
            RuntimeError: one has no memory. PyTorch says why.
        """
        own, others = tuple(tensors), tuple(grads)
        places = id(own) + ITEMS, id(others) + ITEMS, id(None)
        found = self._look(self._describe, *places, len(own), before.place, now.place)
        return Changes(bool(found & 1), bool(found & 2), bool(found & 4))


def _describe(kind: type[Any]) -> int | None:
    """Return the address of the C function that describes a tensor; None if there is none."""
    capsule = getattr(kind, API, None)
    if capsule is None:
        return None
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = _Table.from_address(pointer(capsule, CAPSULE))
    address: int | None = table.describe if table.major == MAJOR else None
    return address
