"""Outcomes on a GPU: they stay beside the kernels that read them, and reach the host later.

The device counts the steps that it has judged, and those that it has skipped. What follows to the
host is a snapshot of these counts, behind an event that the host looks at now and then. A snapshot
that is left out costs nothing: the next one has its steps, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.keep import MadeOn, Use
from lucid_gpu.execution import cuda_sums
from lucid_gpu.execution.cuda_sums import JUDGED, CudaSums
from lucid_gpu.execution.gathered import GatheredSums
from lucid_gpu.execution.outcome import Handed, Outcome, Terms
from lucid_gpu.execution.sources import joined

RECORD = np.dtype(
    [
        ("factor", "f8"),
        ("norm", "f8"),
        ("nonfinite", "i8"),
        ("judged", "i8"),
        ("first_skip", "i8"),
        ("single_factor", "f4"),
        ("scale", "f4"),
        ("skips", "i4"),
        ("skipped", "i4"),
    ]
)
"""What a device knows of the last step: ``Outcome`` of ``kernels/rule.cuh``."""

WINDOW = 16
"""How many steps may have been skipped without that the host knows it, before it waits."""


class _Step(NamedTuple):
    """A step of which the host does not know whether it was skipped."""

    may_skip: bool
    call: int


class _Echo:
    """The outcome on another GPU than that where gradients are judged.

    Args:
        home: that GPU.
        made: on which devices and streams gradients were made, as far as is known.
    """

    def __init__(self, home: str, made: Collection[MadeOn]) -> None:
        self.home = home
        self._use = Use(home, made)
        with gpu.on(home):
            self._record = gpu.cupy().zeros(RECORD.itemsize, np.uint8)
            self._use.keep(self, self._record)

    @property
    def address(self) -> int:
        """Where it lies."""
        return int(self._record.data.ptr)

    def follow(self, record: Any, is_judged: Any) -> None:
        """Have the current stream wait for an event, and copy the outcome that is then there."""
        with gpu.on(self.home):
            stream = self._use.stream()
            stream.wait_event(is_judged)
            self._record.data.copy_from_device_async(record.data, record.nbytes, stream)


class CudaOutcomes:
    """Outcomes of gradients on one GPU, or on several.

    Args:
        devices: where each gradient is.
        sizes: how many elements it has.
        dtypes: of each.
        made: on which devices and streams gradients were made, as far as is known.

    Attributes:
        latest: the last one that has arrived, or None.
        known_skips: how many skipped steps the host knows of.
        unknown: how many steps may have been skipped without that it knows of it.
        first_skip: the number of the call that was skipped first, once that is known.
        have_measured: whether the last gradients were measured.
    """

    def __init__(
        self,
        devices: Sequence[str],
        sizes: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        made: Collection[MadeOn] = (),
    ) -> None:
        homes = sorted(set(devices))
        self._home = home = homes[0]
        self._use = Use(home, made)
        self._measured = list(devices), sizes, dtypes, made
        self._echoes = [_Echo(other, made) for other in homes[1:]]
        with gpu.on(home):
            cp = gpu.cupy()
            self._record = cp.zeros(RECORD.itemsize, np.uint8)
            self._culprits = cp.zeros(len(sizes), np.int64)
            self._use.keep(self, (self._record, self._culprits))
            self._copies = transfer.pinned((WINDOW, RECORD.itemsize), np.uint8)
            self._use.keep(self, self._copies, is_pinned=True)
            self._is_judged = cp.cuda.Event(disable_timing=True)
            self._events = [cp.cuda.Event(disable_timing=True) for _ in range(WINDOW)]
        self._steps: deque[_Step] = deque()  # that were launched, or are about to be replayed
        self._sent: deque[int] = deque()  # the turns of the snapshots that are on their way
        self._turn = self._known = 0
        self._is_latest_sent = True
        self._stream: Any = None
        self.latest: Outcome | None = None
        self.known_skips = self.unknown = 0
        self.first_skip: int | None = None
        self.have_measured = False

    @cached_property
    def _sums(self) -> CudaSums | GatheredSums:
        """What measures gradients, made when they are first measured."""
        devices, sizes, dtypes, made = self._measured
        if self._echoes:
            return GatheredSums(devices, sizes, dtypes, made)
        return CudaSums(self._home, sizes, dtypes, made)

    def handed(self, terms: Terms) -> dict[str, Handed]:
        """Return what a step that is judged by some terms is handed on each device."""
        sets = WINDOW if terms.may_skip else 1
        places = {each.home: each.address for each in self._echoes}
        places[self._home] = int(self._record.data.ptr)
        return {
            home: Handed(address=place, base=self.known_skips, sets=sets)
            for home, place in places.items()
        }

    def measured(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return, of each gradient, the sum of squares and how many elements are not finite."""
        return transfer.to(self._sums.sums, "cpu"), transfer.to(self._sums.counts, "cpu")

    def take(
        self,
        grads: Sequence[Any] | None,
        noted: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]] | None,
    ) -> bool:
        """Take the gradients of the next step; False if the arrays themselves are needed.

        Args:
            grads: the arrays, None for those that are absent; or None as a whole.
            noted: else what the ledger says of them.
        """
        if grads is not None:
            self._sums.take(grads)
            return True
        assert noted is not None
        return self._sums.move(*noted)

    def judge(self, terms: Terms) -> None:
        """Measure the gradients that were taken, if terms ask for it, and write their outcome."""
        self.have_measured = terms.measures
        with gpu.on(self._home):
            stream = self._use.stream()
            if terms.measures:
                self._sums.run(self._judged(terms))
            else:
                cuda_sums.judge(self._judged(terms), stream)
            if self._echoes:
                self._is_judged.record(stream)
        for echo in self._echoes:
            echo.follow(self._record, self._is_judged)

    def capture(self, terms: Terms) -> None:
        """Record the same in the graph that the current stream records.

        A replay measures the gradients that :meth:`upload` has brought.

        Raises:
            RuntimeError: gradients are on several GPUs.
        """
        if self._echoes:
            raise RuntimeError(
                "a step whose gradients are measured on several GPUs cannot be recorded in a CUDA "
                "graph: make an optimizer for each GPU, or step outside"
            )
        with gpu.on(self._home):
            stream = self._use.stream()
            if terms.measures:
                assert isinstance(self._sums, CudaSums)
                self._sums.capture(self._judged(terms))
            else:
                cuda_sums.judge(self._judged(terms), stream)

    def upload(self) -> None:
        """Bring to the device where the gradients that were taken lie, for the next replay.

        Raises:
            RuntimeError: they are laid out in more ways than the graph has room for.
        """
        assert isinstance(self._sums, CudaSums)
        self._sums.upload()
        if not self._sums.is_capture_current:
            raise RuntimeError(
                "gradients are laid out in other ways than when the step was captured: capture the "
                "graph anew"
            )

    def count(self, may_skip: bool, call: int) -> None:
        """Count a step that was launched, or whose graph is about to be.

        Args:
            may_skip: whether it may be skipped.
            call: its number among all of the optimizer.
        """
        with gpu.on(self._home):
            self._stream = self._use.stream()
        self._steps.append(_Step(may_skip, call))
        self.unknown += may_skip
        self._is_latest_sent = False

    def send(self) -> None:
        """Have a snapshot copied to the host, unless it would tell of nothing, or all are in use.

        It is of the steps that are on the stream now. So that of a graph is sent behind its launch.
        """
        if not self._steps or self._is_latest_sent or len(self._sent) == WINDOW:
            return
        with gpu.on(self._home):
            stream, turn = self._stream, self._turn
            self._turn = (turn + 1) % WINDOW
            place = self._copies[turn].ctypes.data
            self._record.data.copy_to_host_async(place, RECORD.itemsize, stream)
            self._events[turn].record(stream)
        self._sent.append(turn)
        self._is_latest_sent = True

    def poll(self) -> int:
        """Take in the snapshots that have arrived; return how many skipped steps they tell of."""
        known = self.known_skips
        if self._steps and not self._sent and not self._records():
            self.send()
        while self._sent and self._events[self._sent[0]].done:
            self._arrive()
        return self.known_skips - known

    def settle(self) -> int:
        """Wait for all outcomes, and return how many of them were skipped steps.

        A replay that was announced and not launched has none yet.

        Raises:
            RuntimeError: the stream of the last replay records a graph.
        """
        known = self.known_skips
        self._wait_for(0, is_all=True)
        return self.known_skips - known

    def make_room(self, most: int) -> int:
        """Wait until fewer steps than ``most`` are unknown; return how many were skipped of others.

        Raises:
            RuntimeError: they are of replays that have not been launched.
        """
        known = self.known_skips
        if self.unknown >= most:
            self._wait_for(most - 1)
        if self.unknown >= most:
            raise RuntimeError(
                f"before_replay() was called {self.unknown} times without that the graph was "
                "launched: launch it once after each call, on the stream of the call"
            )
        return self.known_skips - known

    def culprits(self) -> npt.NDArray[np.int64]:
        """Return how many elements of each gradient were not finite at the first skip; waits."""
        counts: npt.NDArray[np.int64] = transfer.to(self._culprits, "cpu")
        return counts

    def _wait_for(self, most: int, is_all: bool = False) -> None:
        """Wait until no more steps than ``most`` are unknown, or no more can be known.

        Args:
            most: of those that may be skipped.
            is_all: whether to wait for outcomes of other steps, too.
        """
        while self._sent and (is_all or self.unknown > most):
            self._wait_for_one()
        if self.unknown > most or (is_all and self._steps):
            if self._records():
                raise RuntimeError(
                    "which steps were skipped cannot be asked while a CUDA graph is recorded on "
                    "the stream of the last replay: ask before it or after it"
                )
            self._is_latest_sent = False  # the last one may be from before the launch of a graph
            self.send()
            while self._sent:
                self._wait_for_one()

    def _wait_for_one(self) -> None:
        self._events[self._sent[0]].synchronize()
        self._arrive()

    def _arrive(self) -> None:
        (record,) = self._copies[self._sent.popleft()].view(RECORD)
        names = ("norm", "factor", "nonfinite", "skipped", "scale")
        norm, factor, nonfinite, skipped, scale = (record[name].item() for name in names)
        judged, first = record["judged"].item(), record["first_skip"].item()
        if judged > self._known:
            self.latest = Outcome(norm, factor, nonfinite, bool(skipped), scale)
        while self._steps and self._known < judged:
            self._known += 1
            may_skip, call = self._steps.popleft()
            self.unknown -= may_skip
            if self._known == first:
                self.first_skip = call
        self.known_skips = record["skips"].item()

    def _judged(self, terms: Terms) -> np.ndarray[Any, Any]:
        """Return what is worked out from sums, and where it goes."""
        given = {
            "scale": terms.scale,
            "found": terms.found,
            "heeded": terms.heeded,
            "outcome": self._record,
            "counts": self._sums.counts if terms.measures else None,
            "culprits": self._culprits,
        }
        record = np.zeros((), JUDGED)
        for name, array in given.items():
            record[name] = _place(array)
        record["tensors"] = len(self._culprits) if terms.measures else 0
        record["max_norm"], record["may_skip"] = terms.max_norm or 0.0, terms.may_skip
        return record

    def _records(self) -> bool:
        """Say whether the stream of the last step records a graph, which is to have no copy."""
        with gpu.on(self._home):
            return self._stream.ptr not in gpu.LEGACY and self._stream.is_capturing()


def _place(array: Any) -> int:
    """Return the address of an array of a GPU, which may be given by it; 0 for None."""
    if array is None or isinstance(array, int):
        return array or 0
    return int(array.data.ptr)


def source() -> str:
    """Return the text of the kernel that adjusts scales."""
    return joined("half", "rule", "judge")
