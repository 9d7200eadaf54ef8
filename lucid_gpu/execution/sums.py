"""Canonical sums: squares of gradients added in one order, on whatever device, by whatever code.

Elements count in the C order of their tensor. In a chunk of 4096, element e goes to lane
``(e // 4) % 256``; a lane adds in rising e; lanes are folded as a tree, 128, 64, … 1. The sums of
the 256 chunks of a page, of the pages of a tensor, and of the tensors are folded likewise: value i
goes to lane ``i % 256``. All in float64, into which each element is converted and squared there. So
alignment, strides, threads and launches change no bit, and these numbers are part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import address
from lucid_gpu.execution.plan import CHUNK_ELEMENTS, cut

LANES = 256
"""``kLanes`` of ``kernels/sums.cuh``."""

NEIGHBOURS = 4
"""Elements that a lane takes at a time: ``kNeighbours``."""

PAGE_CHUNKS = 256

MOST_AXES = 64
"""Axes of an array, at most: those of NumPy."""

MOST_LAYOUTS = 1024
"""How many layouts are remembered before those are forgotten that are no more in use."""

AXES = np.dtype([("rank", "i8"), ("extent", "i8", (MOST_AXES,)), ("stride", "i8", (MOST_AXES,))])
"""How a tensor is walked that is not contiguous: ``Axes``."""

NODE = np.dtype([(name, "i4") for name in ("begin", "end", "awaited", "parent")])
"""What is folded to one value: ``Node`` of ``kernels/rule.cuh``."""

TYPES = {"float32": "float", "float64": "double", "float16": "Float16", "bfloat16": "BFloat16"}
"""The dtypes that gradients may have, by name, and how kernels call them."""

PLACEHOLDER = np.dtype(np.float32)
"""The dtype of a tensor without elements, which stands for a gradient that is elsewhere."""

Ranges = npt.NDArray[np.int64]
"""Rows of begin and end: which values are folded to one."""


@cache
def is_measurable(dtype: np.dtype[Any]) -> bool:
    """Say whether arrays of a dtype can be measured."""
    return dtype.isnative and dtype.name in TYPES


class SumPlan(NamedTuple):
    """What is folded to what.

    Attributes:
        chunks: one record per chunk; those of tensors of one dtype are neighbours.
        runs: for each dtype, where its chunks begin and end.
        pages: the chunks of each page.
        tensors: the pages of each tensor, in the order in which tensors were given.
    """

    chunks: np.ndarray[Any, Any]
    runs: list[tuple[np.dtype[Any], int, int]]
    pages: Ranges
    tensors: Ranges

    def nodes(self, has_total: bool = False) -> np.ndarray[Any, Any]:
        """Return the tree of what is folded to what: chunks, then pages, tensors, and the total.

        Args:
            has_total: whether tensors are folded, too. Those without elements are zeros that nobody
                waits for.

        Example:
            >>> plan_sums([5000, 0], [np.dtype("f4")] * 2).nodes(has_total=True).tolist()
            ... # doctest: +NORMALIZE_WHITESPACE
            [(0, 0, 0, 2), (0, 0, 0, 2), (0, 2, 2, 3), (2, 3, 1, 5), (3, 3, 0, 5), (3, 5, 1, -1)]
        """
        folds = [np.zeros((len(self.chunks), 2), np.int64), self.pages, self.tensors]
        if has_total:
            folds.append(np.array([[0, len(self.tensors)]], np.int64))
        starts = np.cumsum([0, *map(len, folds)])
        nodes = np.zeros(int(starts[-1]), NODE)
        nodes["parent"] = -1
        for level, ranges in enumerate(folds[1:], 1):
            begin, end = (ranges + starts[level - 1]).T
            own = nodes[starts[level] : starts[level + 1]]
            own["begin"], own["end"], own["awaited"] = begin, end, end - begin
            parts = np.repeat(begin, end - begin) + _within(end - begin)
            nodes["parent"][parts] = np.repeat(
                np.arange(starts[level], starts[level + 1]), end - begin
            )
        if has_total:
            nodes["awaited"][-1] = np.count_nonzero(np.diff(self.tensors))
        return nodes


def plan_sums(sizes: Sequence[int], dtypes: Sequence[np.dtype[Any]]) -> SumPlan:
    """Return what is folded to what, for tensors of some sizes and dtypes.

    Example:
        >>> plan_sums([5000, 3], [np.dtype("f4")] * 2).tensors.tolist()
        [[0, 1], [1, 2]]
    """
    kinds = list(dict.fromkeys(dtypes))
    kind_of = np.array([kinds.index(dtype) for dtype in dtypes], np.intp)
    order = np.argsort(kind_of, kind="stable")
    ordered = np.array(sizes, np.int64)[order]
    chunks = cut(ordered, CHUNK_ELEMENTS)
    chunks["tensor"] = order[chunks["tensor"]]
    chunk_ranges = _consecutive(-(-ordered // CHUNK_ELEMENTS))
    page_ranges = _consecutive(-(-np.diff(chunk_ranges).ravel() // PAGE_CHUNKS))
    tensor = np.repeat(np.arange(len(order)), np.diff(page_ranges).ravel())
    within = np.arange(len(tensor)) - page_ranges[tensor, 0]
    first = chunk_ranges[tensor, 0] + within * PAGE_CHUNKS
    last = np.minimum(first + PAGE_CHUNKS, chunk_ranges[tensor, 1])
    tensors = np.empty_like(page_ranges)
    tensors[order] = page_ranges
    ends = np.searchsorted(kind_of[order][_owners(chunk_ranges)], np.arange(len(kinds) + 1))
    runs = [(kind, int(ends[i]), int(ends[i + 1])) for i, kind in enumerate(kinds)]
    return SumPlan(chunks, runs, np.stack([first, last], axis=1), tensors)


def fold(sums: npt.NDArray[np.float64], ranges: Ranges) -> npt.NDArray[np.float64]:
    """Return what the sums of each range add up to, in the canonical order."""
    lengths = np.diff(ranges).ravel()
    result = np.zeros(len(ranges))
    alone = lengths == 1
    result[alone] = sums[ranges[alone, 0]]
    several = np.flatnonzero(lengths > 1)
    for place in range(0, len(several), LANES):
        batch = several[place : place + LANES]
        begin, end = ranges[batch].T[..., np.newaxis]
        lanes = np.zeros((len(batch), LANES))
        for offset in range(0, int(lengths[batch].max()), LANES):
            index = begin + np.arange(offset, offset + LANES)
            lanes += np.where(index < end, sums[np.minimum(index, end - 1)], 0.0)
        result[batch] = fold_lanes(lanes)
    return result


def fold_lanes(lanes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sums of lanes, the last axis, added as a tree."""
    half = LANES
    while half := half // 2:
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def of_squares(chunks: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the sum of the squares of each chunk, a row, which are left in its place."""
    np.multiply(chunks, chunks, out=chunks)
    by_lane = chunks.reshape(len(chunks), -1, LANES, NEIGHBOURS)
    lanes = np.zeros((len(chunks), LANES))
    for turn in range(by_lane.shape[1]):
        for neighbour in range(NEIGHBOURS):
            lanes += by_lane[:, turn, :, neighbour]
    return fold_lanes(lanes)


def fold_counts(counts: npt.NDArray[np.int64], ranges: Ranges) -> npt.NDArray[np.int64]:
    """Return the sum of the counts of each range."""
    before: npt.NDArray[np.int64] = np.append(0, np.cumsum(counts))
    added: npt.NDArray[np.int64] = before[ranges[:, 1]] - before[ranges[:, 0]]
    return added


class Layouts:
    """The layouts of gradients that are not contiguous, by numbers that stay.

    Attributes:
        records: one for each, as :data:`AXES`; another array whenever there are more.
    """

    def __init__(self) -> None:
        self.records = np.zeros(0, AXES)
        self._number_of: dict[tuple[Any, ...], int] = {}

    def numbers(self, grads: Sequence[Any]) -> npt.NDArray[np.int32]:
        """Return the number of the layout of each gradient, from 1; 0 if contiguous or None."""
        found = [self._number(grad) for grad in grads]
        if len(self._number_of) > MOST_LAYOUTS and len(self._number_of) > len(grads):
            self._number_of.clear()
            found = [self._number(grad) for grad in grads]
        if len(self._number_of) != len(self.records):
            self.records = np.array(
                [_axes_record(*layout) for layout in self._number_of], AXES
            ).reshape(-1)
        return np.array(found, np.int32)

    def _number(self, grad: Any) -> int:
        if grad is None or (grad.flags.c_contiguous and _is_aligned(grad)):
            return 0
        layout = grad.shape, grad.strides
        return self._number_of.setdefault(layout, len(self._number_of) + 1)


def logical_axes(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the fewest axes that walk an array in C order: their extents and strides.

    Example:
        >>> logical_axes((2, 1, 3, 4), (96, 8, 32, 8)), logical_axes((2, 3), (4, 8))
        (([24], [8]), ([2, 3], [4, 8]))
    """
    extents: list[int] = []
    steps: list[int] = []
    for extent, stride in zip(shape, strides, strict=True):
        if extent == 1:
            continue
        if extents and steps[-1] == stride * extent:
            extents[-1] *= extent
            steps[-1] = stride
        else:
            extents.append(extent)
            steps.append(stride)
    return extents, steps


def addresses(grads: Sequence[Any]) -> npt.NDArray[np.uint64]:
    """Return the address of each gradient, 0 for None."""
    return np.array([0 if grad is None else address(grad) for grad in grads], np.uint64)


def _axes_record(shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray[Any, Any]:
    record = np.zeros((), AXES)
    extents, steps = logical_axes(shape, strides)
    record["rank"] = len(extents)
    record["extent"][: len(extents)] = extents
    record["stride"][: len(steps)] = steps
    return record


def _is_aligned(grad: Any) -> bool:
    return bool(getattr(grad.flags, "aligned", True))  # CuPy's arrays always are


def _consecutive(counts: npt.NDArray[np.int64]) -> Ranges:
    ends = np.cumsum(counts)
    return np.stack([ends - counts, ends], axis=1)


def _within(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return 0, 1, … below each of the counts, one after the other."""
    return np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)


def _owners(ranges: Ranges) -> npt.NDArray[np.intp]:
    return np.repeat(np.arange(len(ranges)), np.diff(ranges).ravel())
