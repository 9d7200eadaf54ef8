"""Compiles ``kernels/`` once and launches a plan: one launch for any number of tensors."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, kernels
from lucid_gpu.device.arrays import STRIDED, address, contiguity, device_of
from lucid_gpu.device.gradient_table import ABSENT
from lucid_gpu.device.keep import MadeOn, Use
from lucid_gpu.device.staged import StagedTable
from lucid_gpu.execution import plan as _plan
from lucid_gpu.execution.cuda_totals import Totals
from lucid_gpu.execution.outcome import PLAIN, Handed
from lucid_gpu.execution.plan import THREADS, WATCHED, Plan, TensorGroup
from lucid_gpu.execution.rule import Rule, Storage
from lucid_gpu.execution.sources import parts, step_source
from lucid_gpu.execution.strided import StridedLaunches

AHEAD = np.dtype([("base", "i4"), ("stride", "i4")])
"""What stands ahead of the rows of tensors: of how many skipped steps they know, and how far on the
row for one more is."""

RECORD_STAGE_BYTES = 1 << 12
"""Of the pinned copies in which records of tensors travel that were given other arrays."""


class CudaExecutor:
    """Steps CuPy arrays of one device, on the stream that is current when it is called.

    Parameters and slots that are let go stay until that stream is done with them. Gradients do not:
    as their memory is given back in every step, whoever frees them on another stream has it wait.

    Args:
        tensors: what to step.
        grads: their gradients; None for a tensor that is left out.
        made: on which devices and streams the arrays were made, as far as is known; more may be
            added.

    Attributes:
        needs_gradients: whether each run wants its gradients anew. Addresses stay on the device;
            the arrays are let go, so that their memory is free when the training loop is done.
    """

    def __init__(
        self, tensors: TensorGroup, grads: Sequence[Any], made: Collection[MadeOn] = ()
    ) -> None:
        self._home = device_of(tensors.params[0])
        self._tensors = tensors
        self._orders = tensors.orders
        self._use = Use(self._home, made)
        count = len(tensors.params)
        self._arrays = [tensors.arrays(tensor) for tensor in range(count)]
        self._use.keep(self, self._arrays)
        self._layouts = np.zeros(count, np.uint8)
        self._read_layouts(range(count))
        layouts = np.array([_layout(grad) for grad in grads], np.uint8)
        self._is_dense = self._match(layouts, (self._layouts & self._orders) != 0)
        self._dense = np.flatnonzero(self._is_dense)
        self._strided = np.flatnonzero(~self._is_dense)
        with gpu.on(self._home):
            self._fused = self._fused_launch(tensors.select(self._dense))
            self._single = self._strided_launches(tensors.select(self._strided))
        self.needs_gradients = len(self._strided) > 0
        self.replace_gradients(grads)

    def replace_gradients(self, grads: Sequence[Any]) -> bool:
        """Take other gradient arrays from now on; False if their layout asks for a new executor.

        None stands for a tensor that is left out.
        """
        addresses = np.array([0 if grad is None else grad.data.ptr for grad in grads], np.uint64)
        layouts = np.array([_layout(grad) for grad in grads], np.uint8)
        if not self.move_gradients(addresses, layouts):
            return False
        self._single.replace_gradients([grads[i] for i in self._strided.tolist()])
        return True

    def move_gradients(
        self, addresses: npt.NDArray[np.uint64], layouts: npt.NDArray[np.uint8]
    ) -> bool:
        """Take gradients at other addresses; False if their layout asks for a new executor."""
        if not np.array_equal(self._match(layouts, self._is_dense), self._is_dense):
            return False
        present = np.where(layouts == ABSENT, np.uint64(0), addresses)
        self._fused.move_gradients(present[self._dense])
        return True

    def renew(self, tensors: Sequence[int]) -> bool:
        """Look anew at the arrays of some tensors; False if that asks for a new executor."""
        self._read_layouts(tensors)
        own = np.array(tensors, np.intp)
        if not ((self._layouts[own] & self._orders) != 0)[self._is_dense[own]].all():
            return False
        self._use.let_go([self._arrays[tensor] for tensor in tensors])
        for tensor in tensors:
            self._arrays[tensor] = self._tensors.arrays(tensor)
        place = {tensor: i for i, tensor in enumerate(self._dense.tolist())}
        single = {tensor: i for i, tensor in enumerate(self._strided.tolist())}
        with gpu.on(self._home):
            for tensor in tensors:
                arrays = self._tensors.arrays(tensor)
                if tensor in single:
                    self._single.renew(single[tensor], arrays)
                elif not self._fused.renew(place[tensor], arrays):
                    return False
        return True

    @property
    def needs_exact_rows(self) -> bool:
        """Whether the host must know of every skipped step: not every launch can choose its row."""
        return len(self._strided) > 0

    def run(
        self, rows: npt.NDArray[Any], row_of: npt.NDArray[np.int32], handed: Handed = PLAIN
    ) -> None:
        """Update every tensor that has a gradient.

        Args:
            rows: the scalars of each row, then those for each skipped step that there may be more.
            row_of: for each tensor, its row.
            handed: what the gradients amount to.
        """
        with gpu.on(self._home):
            self._fused.run(rows, row_of[self._dense], handed)
            if len(self._strided):
                self._use.stream()
            self._single.launch(rows, row_of[self._strided], handed.address)

    def watched(self) -> npt.NDArray[np.float64]:
        """Return what the last step of each tensor told, a row of :data:`plan.WATCHED`; waits."""
        with gpu.on(self._home):
            found = np.zeros((len(self._is_dense), len(WATCHED)))
            found[self._dense] = self._fused.watched()
            found[self._strided] = self._single.watched()
        return found

    def require_capturable(self) -> None:
        """Raise if the launch cannot be recorded in a graph.

        Raises:
            RuntimeError: a tensor is not contiguous: its scalars would be frozen in the graph; or
                it is on another device than the stream, which would not record its launch.
        """
        if len(self._strided):
            raise RuntimeError(
                f"{len(self._strided)} parameters or gradients are not contiguous, which a CUDA "
                "graph cannot replay with new scalars: make them contiguous before capturing"
            )
        with gpu.on(self._home):
            if not gpu.is_capturing([self._home]):
                raise RuntimeError(
                    f"the parameters on {self._home} step on a stream that records no graph: "
                    "capture one optimizer for each device"
                )

    def capture(self, handed: Handed = PLAIN) -> None:
        """Record the launch in the graph that the current stream records.

        Args:
            handed: what the gradients amount to.
        """
        with gpu.on(self._home):
            self._fused.capture(handed)

    def upload(
        self, rows: npt.NDArray[Any], row_of: npt.NDArray[np.int32], handed: Handed = PLAIN
    ) -> None:
        """Bring scalars and gradient addresses to the device, for the next replay.

        Raises:
            RuntimeError: there are more rows than the table has room for that the graph reads.
        """
        with gpu.on(self._home):
            self._fused.upload(rows, row_of[self._dense], handed, is_replay=True)

    @property
    def room(self) -> int:
        """How many rows there may be in a replay."""
        return self._fused.room

    def _fused_launch(self, tensors: TensorGroup) -> FusedLaunch:
        return FusedLaunch(tensors, self._use)

    def _strided_launches(self, tensors: TensorGroup) -> StridedLaunches:
        return StridedLaunches(tensors, self._use)

    def _read_layouts(self, tensors: Iterable[int]) -> None:
        for tensor in tensors:
            layout = _plan.common_layout(self._tensors.arrays(tensor))
            self._layouts[tensor] = layout or STRIDED

    def _match(
        self, layouts: npt.NDArray[np.uint8], otherwise: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Say which tensors are contiguous in one order with their gradient and slots.

        Args:
            layouts: of the gradients.
            otherwise: the answer for tensors without a gradient.
        """
        is_dense: npt.NDArray[np.bool_] = (self._layouts & layouts & self._orders) != 0
        return np.where(layouts == ABSENT, otherwise, is_dense)


def _layout(grad: Any) -> int:
    return ABSENT if grad is None else contiguity(grad)


class FusedLaunch:
    """The one launch that updates all contiguous tensors.

    It carries their scalars, so that a step whose gradients stay copies nothing. Those of a launch
    in a graph, and more than a launch can carry, are read from a table on the device. A tensor
    without a gradient has a null address there.
    """

    def __init__(self, tensors: TensorGroup, use: Use) -> None:
        self._plan: Plan | None = None
        self._watched: Totals | None = None
        if not tensors.params:
            return
        cp = gpu.cupy()
        self._use = use
        self._plan = plan = self._make_plan(tensors)
        self._chunks = cp.array(plan.chunks.view(np.uint8))
        use.keep(self, self._chunks)
        self._records = StagedTable(plan.tensors.nbytes, use, RECORD_STAGE_BYTES)
        self._records.fill(plan.tensors.view(np.uint8))
        self._compute = tensors.storage.compute
        self._row_bytes = len(_plan.row_fields(tensors.rule)) * self._compute.itemsize
        self._argument = np.zeros((), _plan.ARGUMENT)
        self._carried = self._argument["carried"].view(self._compute)
        # Named as records, NumPy would describe each member anew at every launch.
        self._by_value = self._argument.view(f"V{_plan.ARGUMENT.itemsize}")
        self._argument["chunks"] = self._chunks.data.ptr
        self._argument["tensors"] = self._records.device.data.ptr
        self._argument["seed"] = tensors.seed
        of = tensors.rule, tensors.storage, tuple(plan.kinds)
        self._kernel = _compiled(*of, 0, tensors.telemetry)
        self._blocks = len(plan.chunks)
        self._totals: Totals | None = None
        if tensors.rule.sums:
            self._finishing = _compiled(*of, 1, tensors.telemetry)
            self._totals = Totals(use, self._sizes(tensors), len(tensors.rule.sums))
            self._argument["folding"] = self._totals.folding
        if tensors.telemetry:
            self._watched = Totals(use, self._sizes(tensors), len(WATCHED))
            self._argument["watched"] = self._watched.folding
        self._make_table(1)

    def _make_plan(self, tensors: TensorGroup) -> Plan:
        addresses = [
            [*map(address, tensors.arrays(tensor))] for tensor in range(len(tensors.params))
        ]
        return _plan.build(tensors, _plan.whole(tensors), addresses)

    def _sizes(self, tensors: TensorGroup) -> list[int]:
        """Return how many elements each tensor has of which a total is taken."""
        return [param.size for param in tensors.params]

    def _make_table(self, rows: int) -> None:
        """Make the table of what changes from step to step, with room for so many rows."""
        assert self._plan is not None
        spans = len(self._plan.tensors)
        self._capacity = max(rows, min(spans, _plan.CARRIED_BYTES // self._row_bytes))
        scalars = self._capacity * self._row_bytes
        self._split = -(-scalars // 16) * 16
        middle = self._split + 8 * spans
        numbers = middle + AHEAD.itemsize
        self._table = StagedTable(numbers + 4 * spans, self._use)
        self._scalars = self._table.host[:scalars].view(self._compute)
        self._grads = self._table.host[self._split : middle].view(np.uint64)
        self._ahead = self._table.host[middle:numbers].view(AHEAD)
        self._rows = self._table.host[numbers:].view(np.int32)
        self._middle = middle
        base = self._table.device.data.ptr
        self._argument["grads"] = base + self._split
        self._argument["rows"] = base + numbers
        self._gradients_moved = self._rows_moved = True
        self._is_captured = False  # a graph reads the table before this one

    def _make_room(self, rows: int, handed: Handed) -> None:
        rows = max(rows, (handed.stride or rows) * handed.sets)
        if rows > self._capacity:
            grads = self._grads
            self._make_table(max(rows, 2 * self._capacity))
            self._grads[:] = grads

    def watched(self) -> npt.NDArray[np.float64]:
        """Return what the last step of each tensor told: its sums, a row each."""
        return np.zeros((0, len(WATCHED))) if self._watched is None else self._watched.read()

    def move_gradients(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Take the gradients of the tensors at other addresses."""
        if self._plan is not None and not np.array_equal(addresses, self._grads):
            self._grads[:] = addresses
            self._gradients_moved = True

    def renew(self, tensor: int, arrays: Sequence[Any]) -> bool:
        """Take the arrays of a tensor at other addresses; False if that cannot be done here."""
        assert self._plan is not None
        own = self._plan.tensors[tensor : tensor + 1]
        own["array"] = 0
        own["array"][0, : len(arrays)] = [*map(address, arrays)]
        start = tensor * own.itemsize
        self._records.host[start : start + own.itemsize] = own.view(np.uint8)
        self._records.upload(start, start + own.itemsize, self._use.stream())
        return True

    def run(
        self, rows: npt.NDArray[Any], row_of: npt.NDArray[np.int32], handed: Handed = PLAIN
    ) -> None:
        """Launch the kernel with the scalars of each row."""
        if self._plan is None:
            return
        self._argument["outcome"] = handed.address
        if rows.nbytes > _plan.CARRIED_BYTES:
            self.upload(rows, row_of, handed)
            self._argument["table"] = self._table.device.data.ptr
            stream = self._use.stream()
        else:
            self._make_room(len(rows), handed)
            self._argument["table"] = 0
            stream = self._use.stream()
            values = rows.reshape(-1)
            self._carried[: len(values)] = values
            self._take_rows(row_of)
            self._take_ahead(handed)
            self._upload_tensors(stream)
        self._launch(stream)

    def capture(self, handed: Handed = PLAIN) -> None:
        """Launch the kernel with scalars that :meth:`upload` brings."""
        if self._plan is None:
            return
        self._argument["table"] = self._table.device.data.ptr
        self._argument["outcome"] = handed.address
        self._launch(self._use.stream())
        self._is_captured = True

    @property
    def room(self) -> int:
        """How many rows the table has room for."""
        return sys.maxsize if self._plan is None else self._capacity

    def upload(
        self,
        rows: npt.NDArray[Any],
        row_of: npt.NDArray[np.int32],
        handed: Handed = PLAIN,
        is_replay: bool = False,
    ) -> None:
        """Bring scalars, rows and gradient addresses to the table, as far as they changed."""
        if self._plan is None:
            return
        if is_replay and not (self._is_captured and len(rows) <= self._capacity):
            raise RuntimeError(
                "tensors step in more different ways, now or since the capture, than the captured "
                "graph has room for: capture it anew"
            )
        if not is_replay:
            self._make_room(len(rows), handed)
        values = rows.reshape(-1)
        are_new = not np.array_equal(values, self._scalars[: len(values)])
        self._scalars[: len(values)] = values
        self._take_rows(row_of)
        self._take_ahead(handed)
        stream = self._use.stream()
        if are_new and self._gradients_moved:
            self._table.upload(0, len(self._table.host), stream)
            self._gradients_moved = self._rows_moved = False
        elif are_new:
            self._table.upload(0, len(values) * self._compute.itemsize, stream)
        self._upload_tensors(stream)

    def _take_rows(self, row_of: npt.NDArray[np.int32]) -> None:
        if not np.array_equal(row_of, self._rows):
            self._rows[:] = row_of
            self._rows_moved = True

    def _take_ahead(self, handed: Handed) -> None:
        ahead = handed.base, handed.stride
        if self._ahead[0].tolist() != ahead:
            self._ahead[0] = ahead
            self._rows_moved = True

    def _upload_tensors(self, stream: Any) -> None:
        """Bring addresses of gradients and numbers of rows to the table, as far as they changed."""
        if self._gradients_moved or self._rows_moved:
            start = self._split if self._gradients_moved else self._middle
            stop = len(self._table.host) if self._rows_moved else self._middle
            self._table.upload(start, stop, stream)
            self._gradients_moved = self._rows_moved = False

    def _launch(self, stream: Any) -> None:
        if not self._blocks:
            return
        self._sweep(self._kernel, stream)
        if self._totals is not None:
            self._sweep(self._finishing, stream)

    def _sweep(self, kernel: Any, stream: Any) -> None:
        """Launch a kernel over all chunks."""
        kernel((self._blocks,), (THREADS,), (self._by_value,), stream=stream)


def source(rule: Rule, telemetry: bool = False) -> str:
    """Return the text that has the kernels of a rule."""
    own = parts(rule, telemetry)
    return step_source(rule.kernel, "fused_step", *(("sums", "folding") if own else ()), *own)


def _compiled(
    rule: Rule,
    storage: Storage,
    kinds: tuple[Any, ...],
    phase: int = 0,
    telemetry: bool = False,
) -> Any:
    """Return the kernel for some variants of a rule, compiled at the first call."""
    name = _plan.kernel_name(rule, kinds, storage, phase, telemetry)
    return kernels.kernel(source(rule, telemetry), name)
