"""Launches for arrays that are not contiguous: one kernel per tensor, along its strides.

The record types mirror the structs of ``kernels/strided_step.cuh``, member by member.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import kernels
from lucid_gpu.device.arrays import C_ORDER
from lucid_gpu.execution import plan as _plan
from lucid_gpu.execution.cuda_totals import Totals
from lucid_gpu.execution.plan import CHUNK_ELEMENTS, THREADS, WATCHED, TensorGroup
from lucid_gpu.execution.rule import Rule, Storage
from lucid_gpu.execution.sources import parts, step_source

if TYPE_CHECKING:
    from lucid_gpu.device.keep import Use

MAX_RANK = 32
"""Axes of an array, at most, once neighbours are merged; CuPy's arrays have no more."""


class StridedLaunches:
    """One launch per tensor that is not contiguous."""

    def __init__(self, tensors: TensorGroup, use: Use) -> None:
        self._tensors = tensors
        kind = _SummingLaunch if tensors.takes_sums else _Launch
        self._launches = [kind(tensors, tensor, use) for tensor in range(len(tensors.params))]
        self._grads: list[Any] = [None] * len(tensors.params)

    def replace_gradients(self, grads: Sequence[Any]) -> None:
        """Take other gradients for the next launch; None leaves a tensor out."""
        self._grads = list(grads)

    def renew(self, tensor: int, arrays: Sequence[Any]) -> None:
        """Take other arrays of a tensor."""
        self._tensors.params[tensor], *slots = arrays
        self._tensors.slots[tensor] = tuple(slots)

    def launch(
        self, rows: npt.NDArray[Any], row_of: npt.NDArray[np.int32], outcome: int = 0
    ) -> None:
        """Launch all kernels, and let the gradients go.

        Args:
            rows: the scalars of each row.
            row_of: for each tensor, its row.
            outcome: the address of what the gradients amount to, or 0.
        """
        for each in self._launches:
            each.hand(outcome)
        for i, row in enumerate(row_of.tolist()):
            if self._grads[i] is not None:
                self._update(i, rows[row], self._tensors.slots[i] or ())
        self._grads = [None] * len(self._grads)

    def watched(self) -> npt.NDArray[np.float64]:
        """Return what the last step of each tensor told, a row each."""
        told = [each.watched.read() for each in self._launches if isinstance(each, _SummingLaunch)]
        return np.concatenate([np.zeros((0, len(WATCHED))), *told])

    def _update(self, i: int, row: npt.NDArray[Any], slots: Sequence[Any]) -> None:
        self._launches[i].run((self._tensors.params[i], self._grads[i], *slots), row)


class _Launch:
    """The launch for one tensor; its layout is worked out again only when strides change."""

    def __init__(self, tensors: TensorGroup, tensor: int, use: Use) -> None:  # noqa: ARG002
        rule, variant, storage = tensors.rule, tensors.variants[tensor], tensors.storage
        self._kernels = [
            kernels.kernel(
                source(rule, tensors.telemetry),
                kernel_name(rule, variant, storage, phase, tensors.telemetry),
            )
            for phase in range(len(_plan.phases(rule)))
        ]
        record = tensor_record(rule, variant, storage)
        self._keeps_order = tensors.orders == C_ORDER
        self._whole = np.zeros((), sums_record(record))
        self._argument = self._whole["tensor"]
        self._argument["seed"] = tensors.seed
        self._argument["stream"] = tensors.streams[tensor]
        # Named as records, NumPy would describe each member anew at every launch.
        self._by_value = self._argument.view(f"V{record.itemsize}")
        self._strides: list[tuple[int, ...]] = []

    def hand(self, outcome: int) -> None:
        """Take the address of what the gradients amount to."""
        self._argument["outcome"] = outcome

    def run(self, arrays: Sequence[Any], row: npt.NDArray[Any]) -> None:
        """Update a tensor: parameter, gradient, slots."""
        strides = [array.strides for array in arrays]
        if strides != self._strides:
            self._lay_out(arrays[0].shape, strides)
        self._argument["array"]["data"] = [array.data.ptr for array in arrays]
        self._argument["row"] = row.view(self._argument["row"].dtype)[0]
        blocks = -(-arrays[0].size // THREADS)
        if blocks:
            self._launch(blocks)

    def _launch(self, blocks: int) -> None:
        (kernel,) = self._kernels
        kernel((blocks,), (THREADS,), (self._by_value,))

    def _lay_out(self, shape: tuple[int, ...], strides: list[tuple[int, ...]]) -> None:
        extents, merged = merge_axes(shape, strides, self._keeps_order)
        argument = self._argument
        argument["size"] = int(np.prod(shape))
        argument["rank"] = len(extents)
        argument["extent"][: len(extents)] = extents
        argument["array"]["stride"][:, : len(extents)] = merged
        self._strides = strides


class _SummingLaunch(_Launch):
    """The launches of a rule of two phases, or of a step that tells.

    Attributes:
        watched: what it tells; of no tensor if it does not.
    """

    def __init__(self, tensors: TensorGroup, tensor: int, use: Use) -> None:
        super().__init__(tensors, tensor, use)
        size = tensors.params[tensor].size
        self._totals = Totals(use, [size], len(tensors.rule.sums))
        self.watched = Totals(use, [size] * tensors.telemetry, len(WATCHED))
        self._whole["folding"] = self._totals.folding
        self._whole["watched"] = self.watched.folding
        self._by_value = self._whole.view(f"V{self._whole.itemsize}")
        self._chunks = -(-size // CHUNK_ELEMENTS)
        self._tells = tensors.telemetry

    def _launch(self, blocks: int) -> None:
        *measures, moves = self._kernels
        for measure in measures:
            measure((self._chunks,), (THREADS,), (self._by_value,))
        moves((self._chunks if self._tells else blocks,), (THREADS,), (self._by_value,))


def tensor_record(rule: Rule, variant: Any, storage: Storage) -> np.dtype[Any]:
    """Return the record type of ``StridedTensor`` for a variant and its storage."""
    array = np.dtype([("data", "u8"), ("stride", "i8", (MAX_RANK,))])
    return np.dtype(
        [
            ("size", "i8"),
            ("rank", "i8"),
            ("extent", "i8", (MAX_RANK,)),
            ("seed", "u8"),
            ("stream", "u8"),
            ("outcome", "u8"),
            ("array", array, (2 + len(storage.used(rule, variant)),)),
            ("row", _plan.row_record(rule, storage.compute)),
        ],
        align=True,
    )


def sums_record(tensor: np.dtype[Any]) -> np.dtype[Any]:
    """Return the record type of ``StridedSums`` for one of ``StridedTensor``."""
    sums = [("folding", _plan.FOLDING), ("watched", _plan.FOLDING)]
    return np.dtype([("tensor", tensor), *sums], align=True)


def kernel_name(
    rule: Rule, variant: Any, storage: Storage, phase: int = 0, telemetry: bool = False
) -> str:
    """Return the name expression of the kernel for a phase of a variant of a rule."""
    *measures, moves = ("strided_measure", "strided_finish") if rule.sums else ("strided_step",)
    name = [*measures, "strided_watch" if telemetry else moves][phase]
    functor = _plan.functor(rule, variant, storage.compute)
    slots = _plan.slot_types(rule, variant, storage)
    return f"{name}<{', '.join([*_plan.storage_types(storage), functor, *slots])}>"


def source(rule: Rule, telemetry: bool = False) -> str:
    """Return the text that has the kernels of a rule."""
    sums = ("sums", "folding", *parts(rule, telemetry)), ("strided_sums",)
    own = sums if parts(rule, telemetry) else ((), ())
    steps = "fused_step", *own[0], "strided_step", *own[1], *parts(rule, telemetry, "strided_")
    return step_source(rule.kernel, *steps)


def merge_axes(
    shape: tuple[int, ...], strides: Sequence[tuple[int, ...]], keeps_order: bool = False
) -> tuple[list[int], list[list[int]]]:
    """Return the fewest axes along which arrays of one shape can be walked together.

    Axes of one element are left out, the others ordered by the first array's strides, and
    neighbours merged where every array steps evenly from one to the other.

    Args:
        shape: of the arrays.
        strides: of each array, in bytes.
        keeps_order: True leaves the axes in their order, so that elements are counted in C order.

    Returns:
        The extents of the axes, outermost first, and for each array its strides along them.

    Example:
        >>> merge_axes((2, 3, 4), [(96, 32, 8), (12, 4, 24)])
        ([6, 4], [[32, 8], [4, 24]])
    """
    extents: list[int] = []
    columns: list[list[int]] = []
    axes = [axis for axis, extent in enumerate(shape) if extent != 1]
    if not keeps_order:
        axes.sort(key=lambda axis: -abs(strides[0][axis]))
    for axis in axes:
        extent, column = shape[axis], [own[axis] for own in strides]
        if columns and columns[-1] == [stride * extent for stride in column]:
            extents[-1] *= extent
            columns[-1] = column
        else:
            extents.append(extent)
            columns.append(column)
    return extents, [[column[k] for column in columns] for k in range(len(strides))]
