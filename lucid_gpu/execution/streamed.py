"""Steps parameters on a GPU whose slots live in host memory: windows of them visit the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, keep, transfer
from lucid_gpu.device.arrays import address, device_of
from lucid_gpu.execution import plan as _plan
from lucid_gpu.execution.cuda import CudaExecutor, FusedLaunch
from lucid_gpu.execution.plan import THREADS, Plan, Span, TensorGroup
from lucid_gpu.execution.strided import StridedLaunches

WINDOW_BYTES = 32 << 20
"""Device memory of a window, all slots together: enough that starting a copy costs next to nothing
beside the copy."""

ALIGNMENT = 256
"""Bytes: of a slot's place in a window."""

WINDOWS = 3
"""Windows on the device at a time: one is filled, one updated and one emptied."""


class StreamedExecutor(CudaExecutor):
    """Steps CuPy arrays of one device whose slots are NumPy arrays in pinned memory.

    The link to the host is used in both directions at once. A step returns when all is launched,
    but waits for each tensor that is not contiguous; the slots on the host are whole again after
    :meth:`arrive`.
    """

    _fused: _StreamedLaunch

    def require_capturable(self) -> None:
        """Refuse to be recorded in a graph.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(
            "a step that brings state from the host cannot be recorded in a CUDA graph: call "
            "reload() and take one ordinary step before capturing"
        )

    def arrive(self) -> bool:
        """Wait until the slots are back on the host; True, for then they are there."""
        self._fused.arrive()
        return True

    def _fused_launch(self, tensors: TensorGroup) -> _StreamedLaunch:
        return _StreamedLaunch(tensors, self._use)

    def _strided_launches(self, tensors: TensorGroup) -> StridedLaunches:
        return _VisitingLaunches(tensors, self._use)


class _Window(NamedTuple):
    """Device memory for slots, and events: how far what visits it has come."""

    memory: Any
    filled: Any
    updated: Any
    emptied: Any


class _Copy(NamedTuple):
    """Neighbouring bytes of one slot, on the device and in a block of host memory."""

    device: Any
    host: int
    nbytes: int
    block: Any


class _Visit(NamedTuple):
    """What comes to a window, and which chunks the kernel then updates there."""

    window: _Window
    copies: list[_Copy]
    first: int
    blocks: int


class _StreamedLaunch(FusedLaunch):
    """A launch for each window of slots, between its way to the device and its way back."""

    def __init__(self, tensors: TensorGroup, use: keep.Use) -> None:
        self._cargo: list[tuple[_Window, list[_Copy], int]] = []
        self._count = len(tensors.params)
        super().__init__(tensors, use)
        if self._plan is None:
            return
        spans = np.cumsum([0, *(spans for *_, spans in self._cargo)])
        bounds = np.searchsorted(self._plan.chunks["tensor"], spans).tolist()
        self._visits = [
            _Visit(window, copies, start, stop - start)
            for (window, copies, _), (start, stop) in zip(
                self._cargo, pairwise(bounds), strict=True
            )
        ]

    def move_gradients(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Take the gradients of the tensors at other addresses."""
        if self._plan is not None:
            own = addresses[self._tensor]
            super().move_gradients(np.where(own == 0, own, own + self._offset))

    def watched(self) -> npt.NDArray[np.float64]:
        """Return what the last step of each tensor told; one without elements has no window."""
        found = np.zeros((self._count, len(_plan.WATCHED)))
        if self._plan is not None:
            found[np.unique(self._tensor)] = super().watched()
        return found

    def renew(self, tensor: int, arrays: Sequence[Any]) -> bool:  # noqa: ARG002 - as its base class
        """Return that other arrays ask for other windows."""
        return False

    def _take_rows(self, row_of: npt.NDArray[np.int32]) -> None:
        super()._take_rows(row_of[self._tensor])

    def _sizes(self, tensors: TensorGroup) -> list[int]:
        owners = np.unique(self._tensor).tolist()
        return [tensors.params[owner].size for owner in owners]

    def _sweep(self, kernel: Any, stream: Any) -> None:
        """Launch all windows, without waiting for one."""
        for window, copies, first, blocks in self._visits:
            self._up.wait_event(window.emptied)
            for copy in copies:
                copy.device.copy_from_host_async(copy.host, copy.nbytes, self._up)
            window.filled.record(self._up)
            stream.wait_event(window.filled)
            self._argument["chunks"] = self._chunks.data.ptr + first * _plan.CHUNK.itemsize
            self._argument["folding"]["first"] = self._argument["watched"]["first"] = first
            kernel((blocks,), (THREADS,), (self._by_value,), stream=stream)
            window.updated.record(stream)
            self._down.wait_event(window.updated)
            for copy in copies:
                copy.device.copy_to_host_async(copy.host, copy.nbytes, self._down)
            window.emptied.record(self._down)

    def arrive(self) -> None:
        """Wait until every window is back on the host."""
        if self._plan is not None:
            self._down.synchronize()

    def _make_plan(self, tensors: TensorGroup) -> Plan:
        """Return the plan in which the spans of each window are tensors of their own."""
        cuda = gpu.cupy().cuda
        storage = tensors.storage
        itemsize = max(d.itemsize for d in (*storage.slots, *storage.beside.values()))
        slots = max(1, *(len(own or ()) for own in tensors.slots))
        spans = [span for span in _plan.whole(tensors) if tensors.slots[span.tensor] is not None]
        capacity = max(_plan.CHUNK_ELEMENTS, WINDOW_BYTES // (slots * itemsize))
        windows = _plan.windows(spans, capacity)
        cut = [span for window in windows for span in window]
        self._tensor = np.array([span.tensor for span in cut], np.intp)
        grad_bytes = tensors.storage.grad.itemsize
        self._offset = np.array([span.start * grad_bytes for span in cut], np.uint64)

        most = max((sum(span.size for span in window) for window in windows), default=0)
        stride = -(-most * itemsize // ALIGNMENT) * ALIGNMENT
        homes = [_make_window(slots * stride) for _ in windows[:WINDOWS]]
        self._up, self._down = (cuda.Stream(non_blocking=True) for _ in range(2))
        self._up.wait_event(cuda.get_current_stream().record())  # the memory may be in use till now
        keep.wait_for(self, self._use.home, self._down, (homes, tensors.params, tensors.slots))

        addresses: list[list[int]] = []
        for number, window in enumerate(windows):
            home = homes[number % WINDOWS]
            places = [home.memory.data + stride * slot for slot in range(slots)]
            own, copies = _lay_out(tensors, window, places)
            addresses += own
            self._cargo.append((home, copies, len(window)))
        return _plan.build(tensors, cut, addresses)


class _VisitingLaunches(StridedLaunches):
    """The slots of one tensor after the other, as a whole, while the host waits."""

    def _update(self, i: int, row: npt.NDArray[Any], slots: Sequence[Any]) -> None:
        home = device_of(self._tensors.params[i])
        visitors = [transfer.copy(slot, home) for slot in slots]
        super()._update(i, row, visitors)
        for slot, visitor in zip(slots, visitors, strict=True):
            transfer.copy_into(slot, visitor)


def _make_window(nbytes: int) -> _Window:
    cp = gpu.cupy()
    events = (cp.cuda.Event(disable_timing=True) for _ in range(3))
    return _Window(cp.empty(nbytes, np.uint8), *events)


def _lay_out(
    tensors: TensorGroup, window: Sequence[Span], places: Sequence[Any]
) -> tuple[list[list[int]], list[_Copy]]:
    """Lay spans side by side in a window.

    Args:
        tensors: the tensors.
        window: the spans.
        places: where in its memory each slot begins.

    Returns:
        For each span, the addresses of its parameter and slots on the device; and the copies,
        one for all spans that are neighbours in one block of host memory.
    """
    param_bytes = tensors.storage.param.itemsize
    addresses: list[list[int]] = []
    copies: list[list[_Copy]] = [[] for _ in places]
    taken = 0
    for tensor, start, size in window:
        own = [address(tensors.params[tensor]) + start * param_bytes]
        for slot, place, made in zip(tensors.slots[tensor] or (), places, copies, strict=False):
            itemsize = slot.dtype.itemsize
            at, nbytes = place + taken * itemsize, size * itemsize
            host = address(slot) + start * itemsize
            own.append(int(at.ptr))
            if made and _is_next(made[-1], at, host, slot.base):
                made[-1] = made[-1]._replace(nbytes=made[-1].nbytes + nbytes)
            else:
                made.append(_Copy(at, host, nbytes, slot.base))
        addresses.append(own)
        taken += size
    return addresses, [copy for made in copies for copy in made]


def _is_next(copy: _Copy, at: Any, host: int, block: Any) -> bool:
    """Say whether bytes follow those of a copy, on both sides."""
    return (
        block is not None
        and copy.block is block
        and copy.host + copy.nbytes == host
        and copy.device.ptr + copy.nbytes == at.ptr
    )
