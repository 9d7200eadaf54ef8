"""Outcomes of gradients of which some are on the host: it waits for the GPUs, once in each step."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.keep import MadeOn, Use
from lucid_gpu.device.staged import StagedTable
from lucid_gpu.execution import sums
from lucid_gpu.execution.cpu_sums import CpuSums
from lucid_gpu.execution.cuda_outcomes import RECORD
from lucid_gpu.execution.cuda_sums import CudaSums
from lucid_gpu.execution.gathered import only_on
from lucid_gpu.execution.outcome import Handed, Outcome, Terms, judged


class MixedOutcomes:
    """Outcomes of gradients on the host and on GPUs, judged on the host.

    Args:
        devices: where each gradient is.
        sizes: how many elements it has.
        dtypes: of each.
        made: on which devices and streams gradients were made, as far as is known.

    Attributes:
        sums: of each gradient, float64.
        counts: of elements that are not finite, of each gradient, int64.
        have_measured: whether the last gradients were measured.
    """

    def __init__(
        self,
        devices: Sequence[str],
        sizes: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        made: Collection[MadeOn] = (),
    ) -> None:
        self._devices = list(devices)
        self._on_cpu = CpuSums(*only_on("cpu", devices, sizes, dtypes))
        self._on_gpus = [
            _OnGpu(home, *only_on(home, devices, sizes, dtypes), made)
            for home in sorted(set(devices) - {"cpu"})
        ]
        self.have_measured = False
        self.sums: npt.NDArray[np.float64] = np.zeros(0)
        self.counts: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def judge(self, grads: Callable[[], Sequence[Any]], terms: Terms) -> Outcome:
        """Return what gradients amount to.

        Args:
            grads: returns them, None for those that are absent.
            terms: by which they are judged.
        """
        self.have_measured = terms.measures
        total, count = self._measure(grads()) if terms.measures else (math.nan, -1)
        outcome = judged(total, count, terms)
        if not outcome.skipped:
            for each in self._on_gpus:
                each.bring(outcome)
        return outcome

    def _measure(self, grads: Sequence[Any]) -> tuple[float, int]:
        """Return the sum of all squares, and how many elements are not finite."""
        for each in self._on_gpus:
            each.start(self._only_on(each.home, grads))
        self._on_cpu.take(self._only_on("cpu", grads))
        self._on_cpu.run()
        found = [each.results() for each in self._on_gpus]
        self.sums, self.counts = self._on_cpu.sums.copy(), self._on_cpu.counts.copy()
        for own_sums, own_counts in found:  # of gradients elsewhere, both are 0
            self.sums += own_sums
            self.counts += own_counts
        (total,) = sums.fold(self.sums, np.array([[0, len(self.sums)]]))
        return float(total), int(self.counts.sum())

    def handed(self, outcome: Outcome) -> dict[str, Handed]:
        """Return what a step is handed on each device."""
        on_gpus = {each.home: Handed(address=each.address) for each in self._on_gpus}
        return {"cpu": Handed(factor=outcome.factor), **on_gpus}

    def measured(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return the sum of squares of each gradient, and how many elements are not finite."""
        return self.sums, self.counts

    def _only_on(self, home: str, grads: Sequence[Any]) -> list[Any]:
        return [grad if at == home else None for grad, at in zip(grads, self._devices, strict=True)]


class _OnGpu:
    """The gradients of a GPU: what measures them, and the outcome that is brought there."""

    def __init__(
        self,
        home: str,
        sizes: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        made: Collection[MadeOn],
    ) -> None:
        self.home = home
        self._use = Use(home, made)
        self._sums = CudaSums(home, sizes, dtypes, made)
        with gpu.on(home):
            self._arriving = transfer.pinned((2, len(sizes)), np.int64)
            self._use.keep(self, self._arriving, is_pinned=True)
            self._arrived = gpu.cupy().cuda.Event(disable_timing=True)
            self._record = StagedTable(RECORD.itemsize, self._use)

    @property
    def address(self) -> int:
        """Where the outcome lies on the device."""
        return int(self._record.device.data.ptr)

    def start(self, grads: Sequence[Any]) -> None:
        """Begin to measure gradients."""
        self._sums.take(grads)
        with gpu.on(self.home):
            stream = self._use.stream()
            self._sums.run()
            for to, own in zip(self._arriving, (self._sums.sums, self._sums.counts), strict=True):
                own.data.copy_to_host_async(to.ctypes.data, own.nbytes, stream)
            self._arrived.record(stream)

    def results(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Wait for the sums and counts that have been begun, and return them."""
        self._arrived.synchronize()
        of_sums, counts = self._arriving
        return of_sums.view(np.float64).copy(), counts.copy()

    def bring(self, outcome: Outcome) -> None:
        """Bring an outcome to the device, for what is launched on the current stream."""
        record = self._record.host.view(RECORD)[0]
        record["factor"] = outcome.factor
        record["single_factor"] = np.float32(outcome.factor)
        with gpu.on(self.home):
            self._record.upload(0, RECORD.itemsize, self._use.stream())
