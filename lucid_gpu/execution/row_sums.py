"""Sums of rows that stand for the same row: on a GPU by one kernel, else by NumPy, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_gpu.device import gpu, kernels
from lucid_gpu.device.arrays import device_of
from lucid_gpu.execution.sources import joined

THREADS = 256
"""Of a block; ``kRowThreads`` of the kernel."""

C_TYPES = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}


def coalesced(rows: Any, values: Any) -> tuple[Any, Any]:
    """Return every row once, in rising order, and the sum of its values in order of appearance.

    Waits for the device once, for how many rows there are.

    Args:
        rows: whole numbers, of shape (k,).
        values: of each; (k, …), float32 or float64 on a GPU.
    """
    home = device_of(values)
    xp = gpu.module(home)
    with gpu.on(home):
        order = xp.argsort(rows, kind="stable")
        ranked = rows[order]
        is_first = xp.ones(len(rows), bool)
        is_first[1:] = ranked[1:] != ranked[:-1]
        starts = xp.flatnonzero(is_first)
        unique = ranked[starts]
        if len(unique) == len(rows):
            return unique, values[order]
        ends = xp.full(1, len(rows), starts.dtype)
        starts = xp.concatenate([starts, ends])
        add = _sums_of_numpy if xp is np else _sums_of_kernel
        return unique, add(values, order, starts)


def _sums_of_kernel(values: Any, order: Any, starts: Any) -> Any:
    xp = gpu.cupy()
    values = xp.ascontiguousarray(values)
    segments = len(starts) - 1
    sums = xp.empty((segments, *values.shape[1:]), values.dtype)
    if sums.size:
        kernel = kernels.kernel(joined("row_sums"), f"row_sums<{C_TYPES[values.dtype]}>")
        lengths = np.array([segments, sums.size // segments], np.int64)
        kernel(
            (-(-sums.size // THREADS),),
            (THREADS,),
            (values, order, starts, sums, lengths[0, ...], lengths[1, ...]),
        )
    return sums


def _sums_of_numpy(values: Any, order: Any, starts: Any) -> Any:
    """Add the second value of every row that has one, then the third, and so on."""
    firsts, counts = starts[:-1], np.diff(starts)
    sums = values[order[firsts]]
    by_count = np.argsort(-counts, kind="stable")
    descending = counts[by_count]
    for turn in range(1, descending[0]):
        own = by_count[: np.searchsorted(-descending, -turn, "left")]
        sums[own] += values[order[firsts[own] + turn]]
    return sums
