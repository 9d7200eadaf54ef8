"""Canonical sums of gradients on a GPU, where they stay."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, kernels
from lucid_gpu.device.arrays import C_ORDER
from lucid_gpu.device.gradient_table import ABSENT
from lucid_gpu.device.keep import MadeOn, Use
from lucid_gpu.device.staged import StagedTable
from lucid_gpu.execution import sums
from lucid_gpu.execution.sources import joined

MEASURED = np.dtype(
    [(name, "u8") for name in ("chunks", "grads", "layouts", "axes", "sums", "counts")]
)
"""What chunks are measured with: ``Measured`` of ``kernels/measure.cuh``."""

FOLDED = np.dtype([(name, "u8") for name in ("sums", "counts", "ranges", "to_sums", "to_counts")])
"""What their results are folded with: ``Folded``."""

CHANGED = np.dtype(
    [(name, "u8") for name in ("chunks", "grads", "layouts", "axes", "factor")] + [("number", "f8")]
)
"""What gradients are changed with: ``Changed`` of ``kernels/scale.cuh``."""

CHANGES = {"scale": "Scale", "bound": "Bound"}


class _Run(NamedTuple):
    """A launch over the chunks of one dtype."""

    dtype: np.dtype[Any]
    argument: np.ndarray[Any, Any]
    kernel: Any
    blocks: int


class CudaSums:
    """Sums of squares of CuPy arrays of one device, and counts of elements that are not finite.

    A run is a launch for each dtype and three that fold, on the stream that is current then. It
    allocates nothing and never waits; what comes out is for whoever reads it on that stream.

    Args:
        home: the device.
        sizes: how many elements each gradient has.
        dtypes: of each, as :func:`sums.is_measurable` says.
        made: on which devices and streams gradients were made, as far as is known.

    Attributes:
        sums: of each gradient, float64, on the device.
        counts: of elements that are not finite, of each gradient, int64.
        total: the sums, folded: an array of one element.
        total_count: the counts added up, likewise.
    """

    def __init__(
        self,
        home: str,
        sizes: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        made: Collection[MadeOn] = (),
    ) -> None:
        self._home = home
        self._use = Use(home, made)
        self._plan = plan = sums.plan_sums(sizes, dtypes)
        self._layouts = sums.Layouts()
        with gpu.on(home):
            cp = gpu.cupy()
            levels = [len(plan.chunks), len(plan.pages), len(sizes), 1]
            ends = np.cumsum(levels)
            own_sums, own_counts = cp.zeros(ends[-1]), cp.zeros(ends[-1], np.int64)
            total = np.array([[0, len(sizes)]], np.int64)
            ranges = cp.array(np.concatenate([plan.pages, plan.tensors, total]))
            chunks = cp.array(plan.chunks.view(np.uint8))
            self._memory = own_sums, own_counts, ranges, chunks
            self._use.keep(self, self._memory)
            self.sums, self.counts = own_sums[ends[1] : ends[2]], own_counts[ends[1] : ends[2]]
            self.total, self.total_count = own_sums[ends[2] :], own_counts[ends[2] :]
            self._table = StagedTable(12 * len(sizes), self._use)
            self._grads = self._table.host[: 8 * len(sizes)].view(np.uint64)
            self._numbers = self._table.host[8 * len(sizes) :].view(np.int32)
            self._axes: StagedTable | None = None
            self._records = self._layouts.records
            self._runs = [self._run(*run) for run in plan.runs if run[1] < run[2]]
            self._folds = [
                self._fold(int(ends[level]), levels[level + 1], levels[level])
                for level in range(3)
                if levels[level + 1]
            ]
            self._kernel = kernels.kernel(source(), "fold")
        self._has_moved = True

    def take(self, grads: Sequence[Any]) -> None:
        """Take the gradients from now on; None counts as zeros. Their memory is not kept."""
        self._set(sums.addresses(grads), self._layouts.numbers(grads))

    def move(self, addresses: npt.NDArray[np.uint64], layouts: npt.NDArray[np.uint8]) -> bool:
        """Take gradients that were noted; False if the arrays themselves are needed.

        Args:
            addresses: of the gradients.
            layouts: of each, as ``device.gradient_table`` notes them.
        """
        is_absent = layouts == ABSENT
        if not (is_absent | ((layouts & C_ORDER) != 0)).all():
            return False
        self._set(np.where(is_absent, np.uint64(0), addresses), np.zeros(len(layouts), np.int32))
        return True

    def run(self) -> None:
        """Measure the gradients that were taken."""
        with gpu.on(self._home):
            self.upload()
            self._launch(self._use.stream())

    def upload(self) -> None:
        """Bring to the device where gradients lie, as far as that changed since it was brought."""
        with gpu.on(self._home):
            if self._layouts.records is not self._records:
                self._bring_axes(self._layouts.records)
            if self._has_moved:
                self._table.upload(0, len(self._table.host), self._use.stream())
                self._has_moved = False

    def capture(self) -> None:
        """Record a run in the graph that the current stream records, after :meth:`upload`.

        A replay measures the gradients that were brought last, in the layouts of the capture.
        """
        with gpu.on(self._home):
            self._launch(self._use.stream())

    def change(self, how: str, number: Any) -> None:
        """Change the gradients that were taken, in place.

        Args:
            how: ``"scale"`` multiplies by the number, ``"bound"`` keeps from −number to number.
            number: a float64 of the device, in an array, or a float; it is rounded once to the
                dtype of a gradient, or for those of 16 bits to float32.
        """
        with gpu.on(self._home):
            self.upload()
            stream = self._use.stream()
            for run in self._runs:
                argument = np.zeros((), CHANGED)
                for name in ("chunks", "grads", "layouts", "axes"):
                    argument[name] = run.argument[name]
                is_here = not isinstance(number, float)
                argument["factor" if is_here else "number"] = number.data.ptr if is_here else number
                kernel = kernels.kernel(change_source(), change_name(how, run.dtype))
                by_value = argument.view(f"V{CHANGED.itemsize}")
                kernel((run.blocks,), (sums.LANES,), (by_value,), stream=stream)

    def _set(self, places: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int32]) -> None:
        if np.array_equal(places, self._grads) and np.array_equal(numbers, self._numbers):
            return
        self._grads[:] = places
        self._numbers[:] = numbers
        self._has_moved = True

    def _bring_axes(self, records: np.ndarray[Any, Any]) -> None:
        content = records.view(np.uint8)
        if self._axes is None or len(self._axes.host) < len(content):
            self._axes = StagedTable(2 * len(content), self._use)
            for run in self._runs:
                run.argument["axes"] = self._axes.device.data.ptr
        self._axes.host[: len(content)] = content
        self._axes.upload(0, len(content), self._use.stream())
        self._records = records

    def _run(self, dtype: np.dtype[Any], begin: int, end: int) -> _Run:
        """Return the launch that measures the chunks of a dtype."""
        own_sums, own_counts, _, chunks = self._memory
        argument = np.zeros((), MEASURED)
        table = self._table.device.data.ptr
        argument["chunks"] = chunks.data.ptr + begin * self._plan.chunks.itemsize
        argument["grads"] = table
        argument["layouts"] = table + self._grads.nbytes
        argument["sums"] = own_sums.data.ptr + begin * own_sums.itemsize
        argument["counts"] = own_counts.data.ptr + begin * own_counts.itemsize
        kernel = kernels.kernel(source(), kernel_name(dtype))
        return _Run(dtype, argument, kernel, end - begin)

    def _fold(self, end: int, blocks: int, values: int) -> tuple[Any, int]:
        """Return what values up to some end are folded with, and by how many blocks."""
        own_sums, own_counts, ranges, _ = self._memory
        argument = np.zeros((), FOLDED)
        start, chunks = end - values, len(self._plan.chunks)
        argument["sums"] = own_sums.data.ptr + start * own_sums.itemsize
        argument["counts"] = own_counts.data.ptr + start * own_counts.itemsize
        argument["ranges"] = ranges.data.ptr + (end - chunks) * 2 * ranges.itemsize
        argument["to_sums"] = own_sums.data.ptr + end * own_sums.itemsize
        argument["to_counts"] = own_counts.data.ptr + end * own_counts.itemsize
        return argument.view(f"V{FOLDED.itemsize}"), blocks

    def _launch(self, stream: Any) -> None:
        for run in self._runs:
            by_value = run.argument.view(f"V{MEASURED.itemsize}")
            run.kernel((run.blocks,), (sums.LANES,), (by_value,), stream=stream)
        for by_value, blocks in self._folds:
            self._kernel((blocks,), (sums.LANES,), (by_value,), stream=stream)


def source() -> str:
    """Return the text that has the kernels."""
    return joined("rule", "half", "sums", "measure")


def kernel_name(dtype: np.dtype[Any]) -> str:
    """Return the name expression of the kernel that measures gradients of a dtype."""
    return f"measure<{sums.TYPES[dtype.name]}>"


def change_source() -> str:
    """Return the text that has the kernels that change gradients."""
    return joined("rule", "half", "sums", "scale")


def change_name(how: str, dtype: np.dtype[Any]) -> str:
    """Return the name expression of the kernel that changes gradients of a dtype."""
    own = sums.TYPES[dtype.name]
    return f"change<{CHANGES[how]}<{own}>, {own}>"


def total_of(values: Any, home: str) -> Any:
    """Return the sums of tensors, on a device, folded to one: an array of one element there."""
    with gpu.on(home):
        cp = gpu.cupy()
        counts, total = cp.zeros(len(values) + 1, np.int64), cp.zeros(1)
        ranges = cp.array(np.array([[0, len(values)]], np.int64))
        argument = np.zeros((), FOLDED)
        argument["sums"], argument["counts"] = values.data.ptr, counts.data.ptr
        argument["ranges"], argument["to_sums"] = ranges.data.ptr, total.data.ptr
        argument["to_counts"] = counts.data.ptr + len(values) * counts.itemsize
        by_value = argument.view(f"V{FOLDED.itemsize}")
        kernels.kernel(source(), "fold")((1,), (sums.LANES,), (by_value,))
    return total
