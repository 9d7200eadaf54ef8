"""What arrays are stored as where that is less than what computes: the NumPy twin of the kernels.

``kernels/half.cuh`` and ``kernels/stored.cuh`` do the same, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.execution.rule import BFLOAT16, Storage

HALVES = (BFLOAT16, np.dtype(np.float16))
"""The floating-point types of 16 bits."""

ONE_NAN = 0x7FFF
"""What stands for every NaN, in either of them."""

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


def widen(array: Any) -> Floats:
    """Return the values of an array of 16 bits, of NumPy or CuPy, as float32, exactly."""
    if array.dtype == BFLOAT16:
        values: Floats = (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        return values
    with np.errstate(invalid="ignore"):
        widened: Floats = array.astype(np.float32)
    return widened


def nearest(values: Floats, dtype: np.dtype[Any]) -> Any:
    """Return values rounded to the nearest of a type of 16 bits, ties to even; one NaN for all.

    Args:
        values: an array of NumPy or CuPy.
        dtype: the type.
    """
    if not values.ndim:  # of which NumPy makes scalars
        return nearest(values.reshape(1), dtype).reshape(())
    if dtype == BFLOAT16:
        bits = values.view(np.uint32)
        rounded = ((bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            rounded = values.astype(np.float16).view(np.uint16)
    rounded[values != values] = ONE_NAN  # noqa: PLR0124 - so NaN is told on a GPU, too
    return rounded.view(dtype)


def stochastic(values: Floats, random: Bits) -> Any:
    """Return values as bfloat16, rounded up or down at random, the nearer one more often.

    Args:
        values: what is not finite stays.
        random: 16 random bits for each.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = np.where(np.isfinite(values), bits + random, bits) >> 16
    rounded[np.isnan(values)] = ONE_NAN
    return rounded.astype(np.uint16).view(BFLOAT16)


def split(values: Floats) -> tuple[Any, npt.NDArray[np.int16]]:
    """Return values as bfloat16, ties rounded away from zero, and what is left as int16.

    Together they are the values, exactly; NaN becomes one NaN.
    """
    bits = np.array(values, np.float32).view(np.uint32)
    bits[np.isnan(values)] = 0x7FC00000
    high = ((bits + 0x8000) >> 16).astype(np.uint16)
    return high.view(BFLOAT16), (bits & 0xFFFF).astype(np.uint16).view(np.int16)


def join(high: Any, low: npt.NDArray[np.int16]) -> Floats:
    """Return the values that :func:`split` took apart."""
    bits = (high.view(np.uint16).astype(np.uint32) << 16) + low.astype(np.uint32)
    joined: Floats = bits.view(np.float32)
    return joined


def values(array: Any, compute: np.dtype[Any]) -> Any:
    """Return the values of an array in the dtype that computes, in an array of their own."""
    return (widen(array) if array.dtype in HALVES else array).astype(compute)


class Stored:
    """A part of a tensor: its parameter and slots as they are stored.

    Args:
        storage: what they are stored as.
        param: the parameter.
        arrays: the slots of the rule, and what lies beside the parameter.

    Attributes:
        slots: the slots of the rule.
    """

    def __init__(self, storage: Storage, param: Any, arrays: Sequence[Any]) -> None:
        self._storage, self._param = storage, param
        count = len(arrays) - len(storage.beside)
        self.slots, self._beside = arrays[:count], arrays[count:]

    def param(self) -> Any:
        """Return the exact value of the parameter, in an array of its own."""
        if self._storage.master == "split":
            return join(self._param, *self._beside)
        source = self._beside[0] if self._storage.master == "float32" else self._param
        return values(source, self._storage.compute)

    def write(self, param: Any, slots: Sequence[Any], random: Callable[[int], Bits]) -> None:
        """Store what was computed.

        Args:
            param: the exact value of the parameter.
            slots: the values of the slots.
            random: returns random bits for the array at a position: the parameter, the slots.
        """
        self.write_param(param, random)
        self.write_slots(slots, random)

    def write_param(self, param: Any, random: Callable[[int], Bits]) -> None:
        """Store the parameter alone."""
        if self._storage.master == "split":
            self._param[...], self._beside[0][...] = split(param)
        elif self._storage.master == "float32":
            self._param[...] = nearest(param, self._param.dtype)
            self._beside[0][...] = param
        else:
            _write(self._param, param, random, 0)

    def write_slots(self, slots: Sequence[Any], random: Callable[[int], Bits]) -> None:
        """Store the slots alone."""
        for position, (slot, own) in enumerate(zip(self.slots, slots, strict=True)):
            _write(slot, own, random, 1 + position)


def _write(array: Any, computed: Any, random: Callable[[int], Bits], position: int) -> None:
    if array.dtype == BFLOAT16:
        array[...] = stochastic(computed, random(position))
    else:
        array[...] = computed


def random_bits(seed: int, steps: int, stream: int, elements: npt.NDArray[np.int64]) -> Bits:
    """Return 16 random bits for each element: Philox4x32-10, of which eight elements share a draw.

    They depend on nothing but the arguments: not on how a tensor is cut, laid out or threaded.

    Args:
        seed: of all random bits, an int ≥ 0 and < 2⁶⁴.
        steps: how many steps the tensor has taken, modulo 2³².
        stream: a number < 2³² for the array: of its parameter, and among those of it.
        elements: the numbers of the elements, in C order of the whole parameter.

    Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    blocks, inverse = _distinct(elements >> 3)
    words = philox(seed, blocks, steps, stream)
    halves = np.stack([words & 0xFFFF, words >> 16], axis=-1).reshape(len(blocks), 8)
    bits: Bits = halves[inverse, elements & 7].astype(np.uint16)
    return bits


def philox(seed: int, blocks: npt.NDArray[np.int64], steps: int, stream: int) -> Any:
    """Return four words of 32 bits for each block: Philox4x32-10.

    Args:
        seed: the key.
        blocks: the lower two words of the counter.
        steps: the third word.
        stream: the fourth.
    """
    mask = np.uint64(0xFFFFFFFF)
    c0, c1 = blocks.astype(np.uint64) & mask, blocks.astype(np.uint64) >> np.uint64(32)
    c2, c3 = (np.full(len(blocks), word & 0xFFFFFFFF, np.uint64) for word in (steps, stream))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & mask, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def _distinct(
    blocks: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Return blocks without repetition, in order, and which of them each one was."""
    if not len(blocks):
        return blocks, np.zeros(0, np.intp)
    low, high = int(blocks.min()), int(blocks.max())
    if high - low < 2 * len(blocks):
        return np.arange(low, high + 1), (blocks - low).astype(np.intp)
    return np.unique(blocks, return_inverse=True)
