"""Canonical sums of gradients on several GPUs, gathered on one of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, kernels
from lucid_gpu.device.gradient_table import ABSENT
from lucid_gpu.device.keep import MadeOn, Use
from lucid_gpu.execution import cuda_sums, sums
from lucid_gpu.execution.cuda_sums import CudaSums

GATHERED = np.dtype(
    [(name, "u8") for name in ("sums", "counts", "rows")]
    + [("tensors", "i8"), ("to_sums", "u8"), ("to_counts", "u8")]
)
"""What brings together sums of several devices: ``Gathered`` of ``kernels/measure.cuh``."""


class GatheredSums:
    """As :class:`CudaSums`, of gradients on several GPUs; the results are on the first.

    Each GPU adds up its own gradients. Their sums and counts, 16 bytes for each, are copied to the
    first behind an event, put in the order of the gradients there, and folded: the same bits as on
    one device. Nothing waits on the host, and after it is made nothing is allocated.

    Args:
        devices: where each gradient is.
        sizes: how many elements it has.
        dtypes: of each, as :func:`sums.is_measurable` says.
        made: on which devices and streams gradients were made, as far as is known.

    Attributes:
        home: the first device.
        sums, counts, total, total_count: as those of :class:`CudaSums`, at home.
    """

    def __init__(
        self,
        devices: Sequence[str],
        sizes: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        made: Collection[MadeOn] = (),
    ) -> None:
        homes = sorted(set(devices))
        self.home = homes[0]
        self._parts = [
            CudaSums(home, *only_on(home, devices, sizes, dtypes), made) for home in homes
        ]
        self._is_on = [np.array([device == home for device in devices]) for home in homes]
        self._homes = homes
        self._use = Use(self.home, made)
        count = len(sizes)
        self._measured = []
        for home in homes:
            with gpu.on(home):
                self._measured.append(gpu.cupy().cuda.Event(disable_timing=True))
        with gpu.on(self.home):
            cp = gpu.cupy()
            rows = cp.array(np.array([homes.index(device) for device in devices], np.int32))
            every = cp.zeros((len(homes), count)), cp.zeros((len(homes), count), np.int64)
            self.sums, self.counts = cp.zeros(count), cp.zeros(count, np.int64)
            self.total, self.total_count = cp.zeros(1), cp.zeros(1, np.int64)
            self._every = every
            results = self.sums, self.counts, self.total, self.total_count
            self._use.keep(self, (rows, every, results))
            self._kernel = kernels.kernel(cuda_sums.source(), "gather")
        argument = np.zeros((), GATHERED)
        places = *every, rows, self.sums, self.counts
        names = ("sums", "counts", "rows", "to_sums", "to_counts")
        for name, place in zip(names, places, strict=True):
            argument[name] = place.data.ptr
        argument["tensors"] = count
        self._rows, self._by_value = rows, argument.view(f"V{GATHERED.itemsize}")

    def take(self, grads: Sequence[Any]) -> None:
        """Take the gradients from now on; None counts as zeros. Their memory is not kept."""
        for part, is_on in zip(self._parts, self._is_on, strict=True):
            part.take([grad if own else None for grad, own in zip(grads, is_on, strict=True)])

    def move(self, addresses: npt.NDArray[np.uint64], layouts: npt.NDArray[np.uint8]) -> bool:
        """Take gradients that were noted; False if the arrays themselves are needed.

        Args:
            addresses: of the gradients.
            layouts: of each, as ``device.gradient_table`` notes them.
        """
        absent = layouts.dtype.type(ABSENT)
        return all(
            part.move(addresses, np.where(is_on, layouts, absent))
            for part, is_on in zip(self._parts, self._is_on, strict=True)
        )

    def run(self, judged: np.ndarray[Any, Any] | None = None) -> None:
        """Measure the gradients that were taken.

        Args:
            judged: a record of :data:`cuda_sums.JUDGED` by which they are judged; None for none.
        """
        for home, part, event in zip(self._homes, self._parts, self._measured, strict=True):
            part.run()
            with gpu.on(home):
                event.record(gpu.cupy().cuda.get_current_stream())
        every_sum, every_count = self._every
        with gpu.on(self.home):
            stream = self._use.stream()
            for row, (part, event) in enumerate(zip(self._parts, self._measured, strict=True)):
                stream.wait_event(event)
                for to, own in ((every_sum, part.sums), (every_count, part.counts)):
                    to[row].data.copy_from_device_async(own.data, own.nbytes, stream)
            self._kernel((1,), (sums.LANES,), (self._by_value,), stream=stream)
            into = self.total, self.total_count
            cuda_sums.conclude(self.sums, self.counts, into, judged, stream)


def only_on(
    home: str, devices: Sequence[str], sizes: Sequence[int], dtypes: Sequence[np.dtype[Any]]
) -> tuple[list[int], list[np.dtype[Any]]]:
    """Return sizes and dtypes of gradients, with nothing in place of those on other devices."""
    own = [device == home for device in devices]
    return (
        [size if is_on else 0 for size, is_on in zip(sizes, own, strict=True)],
        [dtype if is_on else sums.PLACEHOLDER for dtype, is_on in zip(dtypes, own, strict=True)],
    )
