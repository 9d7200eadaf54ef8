"""Gradients of one or several devices, measured and changed together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import device_of
from lucid_gpu.execution import changed, cuda_sums, sums
from lucid_gpu.execution.cpu_sums import CpuSums
from lucid_gpu.execution.cuda_sums import CudaSums

KEPT = 16
"""Of how many different sets of gradients the tables are kept."""


class _Part(NamedTuple):
    """The gradients of one device, None for all others, and what measures them."""

    home: str
    grads: list[Any]
    sums: CpuSums | CudaSums


class Measured:
    """Gradients in an order, None for those that are absent.

    Args:
        grads: NumPy or CuPy arrays that :func:`sums.is_measurable` knows; at least one.

    Attributes:
        homes: their devices, that of the first gradient first.
        home: the first of them, where what concerns all gradients is.
    """

    def __init__(self, grads: Sequence[Any]) -> None:
        homes = [None if grad is None else device_of(grad) for grad in grads]
        self.homes = list(dict.fromkeys(home for home in homes if home is not None))
        self.home = self.homes[0]
        self._parts = []
        for home in self.homes:
            own = [grad if at == home else None for grad, at in zip(grads, homes, strict=True)]
            sizes = tuple(0 if grad is None else grad.size for grad in own)
            dtypes = tuple(sums.PLACEHOLDER if grad is None else grad.dtype for grad in own)
            kept = _kept(home, _stream(home), threading.get_ident(), sizes, dtypes)
            if isinstance(kept, CudaSums):
                kept.take(own)
            self._parts.append(_Part(home, own, kept))

    def measure(self) -> None:
        """Add up squares, and count elements that are not finite."""
        for part in self._parts:
            if isinstance(part.sums, CpuSums):
                part.sums.take(part.grads)
            part.sums.run()

    def total(self) -> Any:
        """Return the sum of all squares: an array of one float64 at home, until the next."""
        first, *others = self._parts
        with gpu.on(self.home):
            if not others:
                return first.sums.total
            own = first.sums.sums.copy()
            for part in others:
                own += transfer.to(part.sums.sums, self.home)  # of others' gradients, one is 0
        if self.home == "cpu":
            return sums.fold(own, np.array([[0, len(own)]]))
        return cuda_sums.total_of(own, self.home)

    def found(self) -> Any:
        """Return whether an element is not finite: an int32 of one element at home, 1 or 0."""
        with gpu.on(self.home):
            counts = sum(transfer.to(part.sums.total_count, self.home) for part in self._parts)
            return (counts != 0).astype(np.int32)

    def counts(self) -> npt.NDArray[np.int64]:
        """Return how many elements of each gradient are not finite; the host waits for it."""
        each = [transfer.to(part.sums.counts, "cpu") for part in self._parts]
        counts: npt.NDArray[np.int64] = np.sum(each, axis=0)
        return counts

    def pending_counts(self) -> list[npt.NDArray[np.int64]]:
        """Return the counts of each device, which come without a wait: until then, one is −1."""
        found = []
        for home, _, own in self._parts:
            counts = own.counts.copy() if home == "cpu" else _on_its_way(own.counts, home)
            found.append(counts)
        return found

    def change(self, how: str, number: Any) -> None:
        """Change all gradients in place.

        Args:
            how: ``"scale"`` multiplies by the number, ``"bound"`` brings to the nearest number from
                −number to number, where NaN stays.
            number: a float, or an array of one float64 at home.
        """
        for home, grads, own in self._parts:
            here = number if isinstance(number, float) else transfer.to(number, home)
            if isinstance(own, CudaSums):
                own.change(how, here)
            else:
                changed.change([grad for grad in grads if grad is not None], how, here)


def _on_its_way(counts: Any, home: str) -> npt.NDArray[np.int64]:
    with gpu.on(home):
        arriving = transfer.pinned(counts.shape, np.int64)
        arriving[:] = -1
        stream = gpu.cupy().cuda.get_current_stream()
        counts.data.copy_to_host_async(arriving.ctypes.data, arriving.nbytes, stream)
    return arriving


@lru_cache(KEPT)
def _kept(
    home: str,
    stream: int,  # noqa: ARG001 - results are for one stream, and one thread, at a time
    thread: int,  # noqa: ARG001
    sizes: tuple[int, ...],
    dtypes: tuple[np.dtype[Any], ...],
) -> CpuSums | CudaSums:
    return CpuSums(sizes, dtypes) if home == "cpu" else CudaSums(home, sizes, dtypes)


def forget() -> None:
    """Let go of the tables that are kept."""
    _kept.cache_clear()


def _stream(home: str) -> int:
    if home == "cpu":
        return 0
    number = int(home.removeprefix("cuda:"))
    return int(gpu.cupy().cuda.get_current_stream(number).ptr)
