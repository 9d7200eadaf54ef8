"""Copies between host and device that overlap with what else a device does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lucid_gpu.device import gpu, keep
from lucid_gpu.device.arrays import device_of, is_cupy
from lucid_gpu.device.keep import Kept

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from lucid_gpu.device.arrays import Array


class Copies:
    """Copies between pinned host memory and devices, on a stream beside the current one of each.

    They begin when what is on the current streams now is done. Nothing else waits for them, unless
    it is told to by :meth:`wait` or :meth:`hold_back`. The arrays stay until all have arrived, and
    no longer, whoever lets go of them.

    Args:
        pairs: source and target of each: one is on a device, the other in pinned memory; they are
            contiguous in the same order, and have the same number of bytes.
        wait_when_gone: True has whoever lets go of the copies wait for them, as where somebody
            goes on to use the host memory.
    """

    def __init__(self, pairs: Iterable[tuple[Array, Array]], wait_when_gone: bool = False) -> None:
        pairs_of: dict[str, list[tuple[Array, Array]]] = {}
        for source, target in pairs:
            if source.nbytes:
                home = device_of(source if is_cupy(source) else target)
                pairs_of.setdefault(home, []).append((source, target))
        self._streams: dict[str, Any] = {}
        self._kept: dict[str, Kept] = {}
        self._arrived: dict[str, Any] = {}
        for home, own in pairs_of.items():  # what may fail comes before the first copy
            with gpu.on(home):
                self._streams[home] = gpu.cupy().cuda.Stream(non_blocking=True)
            self._kept[home] = Kept(home, own)
            if wait_when_gone:
                keep.wait_for(self, home, self._streams[home], None)
        try:
            for home, own in pairs_of.items():
                self._launch(home, own)
        except BaseException:
            for stream in self._streams.values():
                stream.synchronize()
            raise

    @property
    def are_done(self) -> bool:
        """Whether all of them have arrived."""
        return all(kept.is_done for kept in self._kept.values())

    def wait(self) -> bool:
        """Wait until all have arrived, and let go of the arrays; True, for then they have."""
        for event in self._arrived.values():
            event.synchronize()
        keep.look()
        return True

    def hold_back(self) -> None:
        """Have what is put on the current stream of each device from now on come after them."""
        for home, event in self._arrived.items():
            with gpu.on(home):
                gpu.cupy().cuda.get_current_stream().wait_event(event)

    def _launch(self, home: str, pairs: Iterable[tuple[Array, Array]]) -> None:
        cuda = gpu.cupy().cuda
        stream = self._streams[home]
        with gpu.on(home):
            stream.wait_event(cuda.get_current_stream().record())
            for source, target in pairs:
                _copy(source, target, stream)
            self._kept[home].until(stream)
            # Who waits for it sleeps: by default, CUDA keeps a core busy with waiting.
            self._arrived[home] = stream.record(cuda.Event(block=True, disable_timing=True))


def _copy(source: Array, target: Array, stream: Any) -> None:
    if is_cupy(source):
        source.data.copy_to_host_async(target.ctypes.data, source.nbytes, stream)
    else:
        target.data.copy_from_host_async(source.ctypes.data, source.nbytes, stream)


def contiguous(array: Array, order: str) -> Array:
    """Return a device array, or a copy if it is not contiguous in ``"C"`` or ``"F"`` order."""
    with gpu.on(device_of(array)):
        return gpu.cupy().array(array, order=order, copy=None)


def download_later(pairs: Iterable[tuple[Array, np.ndarray[Any, Any]]]) -> Callable[[], object]:
    """Copy device arrays into pinned host arrays of the same shape and dtype, without waiting.

    The copies run beside the current stream of each device, after what is on it now and before
    what is put on it later, so the caller may go on changing the arrays.

    Returns:
        A function that waits until every copy has arrived.
    """
    copies = Copies([(contiguous(array, "C"), host) for array, host in pairs], wait_when_gone=True)
    copies.hold_back()
    return copies.wait
