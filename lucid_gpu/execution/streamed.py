"""Steps parameters on a GPU whose slots live in host memory: windows of them visit the device."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import address, device_of
from lucid_gpu.execution import plan as _plan
from lucid_gpu.execution.cuda import THREADS, CudaExecutor, FusedLaunch, StridedLaunches
from lucid_gpu.execution.plan import Piece, Plan, Work

WINDOW_BYTES = 32 << 20
"""Device memory of a window, all slots together: enough that starting a copy costs next to nothing
beside the copy."""

ALIGNMENT = 256
"""Bytes: of a slot's place in a window."""

BERTHS = 3
"""Windows on the device at a time: one is filled, one updated and one emptied."""


class StreamedExecutor(CudaExecutor):
    """Steps CuPy arrays of one device whose slots are NumPy arrays in pinned memory.

    The link to the host is used in both directions at once. A step returns when all is launched,
    but waits for each tensor that is not contiguous; the slots on the host are whole again after
    :meth:`arrive`.
    """

    _fused: _StreamedLaunch

    def capture(self) -> None:
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

    def _fused_launch(self, work: Work) -> _StreamedLaunch:
        return _StreamedLaunch(work)

    def _strided_launches(self, work: Work) -> StridedLaunches:
        return _VisitingLaunches(work)


class _Berth(NamedTuple):
    """Device memory for one window at a time, and events: how far that window has come."""

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


class _Load(NamedTuple):
    """What a window brings to its berth, and which chunks the kernel then updates there."""

    berth: _Berth
    copies: list[_Copy]
    chunks: int
    blocks: int


class _StreamedLaunch(FusedLaunch):
    """A launch for each window of slots, between its way to the device and its way back."""

    def __init__(self, work: Work) -> None:
        self._arrays = work.params, work.slots  # what is under way does not outlive them
        self._freights: list[tuple[_Berth, list[_Copy], int]] = []
        super().__init__(work)
        if self._plan is None:
            return
        pieces = np.cumsum([0, *(pieces for *_, pieces in self._freights)])
        bounds = np.searchsorted(self._plan.chunks["tensor"], pieces).tolist()
        first, size = self._chunks.data.ptr, _plan.CHUNK.itemsize
        self._loads = [
            _Load(berth, copies, first + start * size, stop - start)
            for (berth, copies, _), (start, stop) in zip(
                self._freights, pairwise(bounds), strict=True
            )
        ]

    def move_gradients(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Take the gradients of the tensors at other addresses."""
        if self._plan is not None:
            super().move_gradients(addresses[self._tensor] + self._offset)

    def _launch(self, stream: Any) -> None:
        """Launch all windows, without waiting for one."""
        for berth, copies, chunks, blocks in self._loads:
            self._up.wait_event(berth.emptied)
            for copy in copies:
                copy.device.copy_from_host_async(copy.host, copy.nbytes, self._up)
            berth.filled.record(self._up)
            stream.wait_event(berth.filled)
            self._argument["chunks"] = chunks
            self._kernel((blocks,), (THREADS,), (self._by_value,), stream=stream)
            berth.updated.record(stream)
            self._down.wait_event(berth.updated)
            for copy in copies:
                copy.device.copy_to_host_async(copy.host, copy.nbytes, self._down)
            berth.emptied.record(self._down)

    def arrive(self) -> None:
        """Wait until every window is back on the host."""
        if self._plan is not None:
            self._down.synchronize()

    def _make_plan(self, work: Work) -> Plan:
        """Return the plan in which the pieces of each window are tensors of their own."""
        cuda = gpu.cupy().cuda
        itemsize, slots = work.dtype.itemsize, max(1, *map(len, work.slots))
        windows = _plan.windows(_plan.whole(work), WINDOW_BYTES // (slots * itemsize))
        pieces = [piece for window in windows for piece in window]
        self._tensor = np.array([piece.tensor for piece in pieces], np.intp)
        self._offset = np.array([piece.start * itemsize for piece in pieces], np.uint64)

        most = max((sum(piece.size for piece in window) for window in windows), default=0)
        stride = -(-most * itemsize // ALIGNMENT) * ALIGNMENT
        berths = [_make_berth(slots * stride) for _ in windows[:BERTHS]]
        self._up, self._down = (cuda.Stream(non_blocking=True) for _ in range(2))
        self._up.wait_event(cuda.get_current_stream().record())  # the memory may be in use till now
        weakref.finalize(self, self._down.synchronize).atexit = False

        addresses: list[list[int]] = []
        for number, window in enumerate(windows):
            berth = berths[number % BERTHS]
            places = [berth.memory.data + stride * slot for slot in range(slots)]
            own, copies = _lay_out(work, window, places)
            addresses += own
            self._freights.append((berth, copies, len(window)))
        return _plan.build(work, pieces, addresses)


class _VisitingLaunches(StridedLaunches):
    """The slots of one tensor after the other, as a whole, while the host waits."""

    def _update(self, i: int, scalars: Iterable[Any], slots: Sequence[Any]) -> None:
        home = device_of(self._work.params[i])
        visitors = [transfer.copy(slot, home) for slot in slots]
        super()._update(i, scalars, visitors)
        for slot, visitor in zip(slots, visitors, strict=True):
            transfer.copy_into(slot, visitor)


def _make_berth(nbytes: int) -> _Berth:
    cp = gpu.cupy()
    events = (cp.cuda.Event(disable_timing=True) for _ in range(3))
    return _Berth(cp.empty(nbytes, np.uint8), *events)


def _lay_out(
    work: Work, window: Sequence[Piece], places: Sequence[Any]
) -> tuple[list[list[int]], list[_Copy]]:
    """Lay the pieces of a window side by side in its berth.

    Args:
        work: the tensors.
        window: the pieces.
        places: where in the berth each slot begins.

    Returns:
        For each piece, the addresses of its parameter and slots on the device; and the copies,
        one for all pieces that are neighbours in one block of host memory.
    """
    itemsize = work.dtype.itemsize
    addresses: list[list[int]] = []
    copies: list[list[_Copy]] = [[] for _ in places]
    offset = 0
    for tensor, start, size in window:
        skipped, nbytes = start * itemsize, size * itemsize
        own = [address(work.params[tensor]) + skipped]
        for slot, place, made in zip(work.slots[tensor], places, copies, strict=False):
            at = place + offset
            host = address(slot) + skipped
            own.append(int(at.ptr))
            if made and _is_next(made[-1], at, host, slot.base):
                made[-1] = made[-1]._replace(nbytes=made[-1].nbytes + nbytes)
            else:
                made.append(_Copy(at, host, nbytes, slot.base))
        addresses.append(own)
        offset += nbytes
    return addresses, [copy for made in copies for copy in made]


def _is_next(copy: _Copy, at: Any, host: int, block: Any) -> bool:
    """Say whether bytes follow those of a copy, on both sides."""
    return (
        block is not None
        and copy.block is block
        and copy.host + copy.nbytes == host
        and copy.device.ptr + copy.nbytes == at.ptr
    )
