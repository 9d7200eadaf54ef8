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
from lucid_gpu.execution.plan import FOLDING
from lucid_gpu.execution.sources import joined

JUDGED = np.dtype(
    [(name, "u8") for name in ("scale", "found", "heeded", "outcome", "counts", "culprits")]
    + [("tensors", "i8"), ("max_norm", "f8"), ("may_skip", "i8")]
)
"""What an outcome is worked out from: ``Judged`` of ``kernels/judge.cuh``."""

MEASURED = np.dtype(
    [(name, "u8") for name in ("chunks", "grads", "layouts", "axes")]
    + [("folding", FOLDING), ("judged", JUDGED)]
)
"""What chunks are measured with: ``Measured`` of ``kernels/measure.cuh``."""

CONCLUDED = np.dtype(
    [(name, "u8") for name in ("sums", "counts", "tensors", "total", "total_count")]
    + [("judged", JUDGED)]
)
"""What sums of tensors are folded with where no chunk is measured: ``Concluded``."""

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

    A run is a launch for each dtype, of which the last block folds, on the stream that is current
    then. It allocates nothing and never waits; what comes out is for whoever reads it there.

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
        is_capture_current: whether the tables are those that the last captured graph reads.
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
            nodes = plan.nodes(has_total=True)
            own_sums, own_counts = cp.zeros(len(nodes)), cp.zeros(len(nodes), np.int64)
            arrived = cp.zeros(len(nodes), np.uint32)
            tree, chunks = (cp.array(own.view(np.uint8)) for own in (nodes, plan.chunks))
            self._memory = own_sums, own_counts, arrived, tree, chunks
            self._use.keep(self, self._memory)
            of_tensors = slice(len(nodes) - 1 - len(sizes), len(nodes) - 1)
            self.sums, self.counts = own_sums[of_tensors], own_counts[of_tensors]
            self.total, self.total_count = own_sums[-1:], own_counts[-1:]
            self._table = StagedTable(12 * len(sizes), self._use)
            self._grads = self._table.host[: 8 * len(sizes)].view(np.uint64)
            self._numbers = self._table.host[8 * len(sizes) :].view(np.int32)
            self._axes: StagedTable | None = None
            self._records = self._layouts.records
            self._runs = [self._run(*run) for run in plan.runs if run[1] < run[2]]
        self._has_moved = True
        self.is_capture_current = False

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

    def run(self, judged: np.ndarray[Any, Any] | None = None) -> None:
        """Measure the gradients that were taken.

        Args:
            judged: a record of :data:`JUDGED` by which the last block judges; None for none.
        """
        with gpu.on(self._home):
            self.upload()
            self._launch(self._use.stream(), judged)

    def upload(self) -> None:
        """Bring to the device where gradients lie, as far as that changed since it was brought."""
        with gpu.on(self._home):
            if self._layouts.records is not self._records:
                self._bring_axes(self._layouts.records)
            if self._has_moved:
                self._table.upload(0, len(self._table.host), self._use.stream())
                self._has_moved = False

    def capture(self, judged: np.ndarray[Any, Any] | None = None) -> None:
        """Record a run in the graph that the current stream records, after :meth:`upload`.

        A replay measures the gradients that were brought last, in the layouts of the capture.
        """
        with gpu.on(self._home):
            self._launch(self._use.stream(), judged)
        self.is_capture_current = True

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
            self.is_capture_current = False
        self._axes.host[: len(content)] = content
        self._axes.upload(0, len(content), self._use.stream())
        self._records = records

    def _run(self, dtype: np.dtype[Any], begin: int, end: int) -> _Run:
        """Return the launch that measures the chunks of a dtype."""
        own_sums, own_counts, arrived, tree, chunks = self._memory
        argument = np.zeros((), MEASURED)
        table = self._table.device.data.ptr
        argument["chunks"] = chunks.data.ptr + begin * self._plan.chunks.itemsize
        argument["grads"] = table
        argument["layouts"] = table + self._grads.nbytes
        places = [own.data.ptr for own in (own_sums, own_counts, tree, arrived)]
        argument["folding"] = (*places, len(own_sums), begin)
        kernel = kernels.kernel(source(), kernel_name(dtype))
        return _Run(dtype, argument, kernel, end - begin)

    def _launch(self, stream: Any, judged: np.ndarray[Any, Any] | None) -> None:
        for run in self._runs:
            run.argument["judged"] = np.zeros((), JUDGED) if judged is None else judged
            by_value = run.argument.view(f"V{MEASURED.itemsize}")
            run.kernel((run.blocks,), (sums.LANES,), (by_value,), stream=stream)
        if judged is not None and not self._runs:
            conclude(self.sums, self.counts, (self.total, self.total_count), judged, stream)


def source() -> str:
    """Return the text that has the kernels."""
    return joined("rule", "half", "judge", "sums", "folding", "measure")


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


def conclude(
    values: Any,
    counts: Any,
    into: tuple[Any, Any],
    judged: np.ndarray[Any, Any] | None,
    stream: Any,
) -> None:
    """Fold the sums of tensors, on the current device, in a launch of one block.

    Args:
        values: a sum for each tensor.
        counts: of elements that are not finite, of each tensor; None for none.
        into: arrays of one element each for the sum and, unless that is None, the count.
        judged: a record of :data:`JUDGED` by which they are judged; None for none.
        stream: the stream of the launch; None for the current one.
    """
    total, total_count = into
    argument = np.zeros((), CONCLUDED)
    argument["sums"], argument["tensors"] = values.data.ptr, len(values)
    argument["counts"] = 0 if counts is None else counts.data.ptr
    argument["total"] = total.data.ptr
    argument["total_count"] = 0 if total_count is None else total_count.data.ptr
    if judged is not None:
        argument["judged"] = judged
    by_value = argument.view(f"V{CONCLUDED.itemsize}")
    kernels.kernel(source(), "conclude")((1,), (sums.LANES,), (by_value,), stream=stream)


def judge(judged: np.ndarray[Any, Any], stream: Any) -> None:
    """Judge gradients that were not measured, on the current device."""
    argument = np.zeros((), CONCLUDED)
    argument["judged"] = judged
    by_value = argument.view(f"V{CONCLUDED.itemsize}")
    kernels.kernel(source(), "conclude")((1,), (sums.LANES,), (by_value,), stream=stream)


def total_of(values: Any, home: str) -> Any:
    """Return the sums of tensors, on a device, folded to one: an array of one element there."""
    with gpu.on(home):
        total = gpu.cupy().zeros(1)
        conclude(values, None, (total, None), None, None)
    return total
