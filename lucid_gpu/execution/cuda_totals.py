"""What the first phase of a rule measures, folded on a GPU to totals of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, kernels
from lucid_gpu.execution import cuda_sums, sums

if TYPE_CHECKING:
    from lucid_gpu.device.keep import Use

FOLDS = 2
"""Launches that fold: chunks to pages, and pages to tensors."""

DOUBLE = np.dtype(np.float64)


class Totals:
    """Memory for the sums of chunks, and two launches that fold them in the canonical order.

    The sums of one kind lie beside each other, and so do the totals of one tensor.

    Args:
        use: what keeps the memory as long as its device needs it.
        sizes: how many elements each tensor has.
        owners: for each record of a plan, the position of its tensor.
        kinds: how many sums are taken of a tensor.
    """

    def __init__(
        self, use: Use, sizes: Sequence[int], owners: npt.NDArray[np.intp], kinds: int
    ) -> None:
        cp = gpu.cupy()
        plan = sums.plan_sums(sizes, [DOUBLE] * len(sizes))
        self._chunks, pages = len(plan.chunks), len(plan.pages)
        of_kind = np.arange(kinds, dtype=np.int64)
        of_pages = plan.pages + (of_kind * self._chunks)[:, np.newaxis, np.newaxis]
        of_totals = plan.tensors[owners][:, np.newaxis] + (of_kind * pages)[:, np.newaxis]
        ranges = np.concatenate([of_pages.reshape(-1, 2), of_totals.reshape(-1, 2)])
        levels = kinds * self._chunks, kinds * pages, kinds * len(owners)
        values, counts = cp.zeros(sum(levels)), cp.zeros(sum(levels), np.int64)
        self._memory = values, counts, cp.array(ranges)
        use.keep(self, self._memory)
        self._folds = [self._fold(0, levels[0], 0), self._fold(levels[0], levels[1], levels[1])]
        self._blocks = levels[1:]
        self._kernel = kernels.kernel(cuda_sums.source(), "fold")

    def put_into(self, argument: Any) -> None:
        """Say in the argument of a kernel where its chunks' sums and the totals are."""
        values, *_ = self._memory
        argument["sums"], argument["stride"] = values.data.ptr, self._chunks
        argument["totals"] = values.data.ptr + (len(values) - self._blocks[1]) * values.itemsize

    def fold(self, stream: Any) -> None:
        """Fold chunks to pages and pages to tensors."""
        for argument, blocks in zip(self._folds, self._blocks, strict=True):
            if blocks:
                by_value = argument.view(f"V{cuda_sums.FOLDED.itemsize}")
                self._kernel((blocks,), (sums.LANES,), (by_value,), stream=stream)

    def _fold(self, start: int, values: int, first_range: int) -> np.ndarray[Any, Any]:
        """Return what values from some place on are folded with."""
        own, counts, ranges = self._memory
        argument = np.zeros((), cuda_sums.FOLDED)
        argument["sums"] = own.data.ptr + start * own.itemsize
        argument["counts"] = counts.data.ptr + start * counts.itemsize
        argument["ranges"] = ranges.data.ptr + first_range * 2 * ranges.itemsize
        argument["to_sums"] = own.data.ptr + (start + values) * own.itemsize
        argument["to_counts"] = counts.data.ptr + (start + values) * counts.itemsize
        return argument
