"""Copies between host and device that overlap with what else a device does."""

from __future__ import annotations

import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import device_of, is_cupy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lucid_gpu.device.arrays import Array

POLL_SECONDS = 1e-3
"""How often a thread looks whether copies are done."""


class Copies:
    """Copies between pinned host memory and devices, on a stream beside the current one of each.

    They begin when what is on the current streams now is done. Nothing else waits for them, unless
    it is told to by :meth:`wait` or :meth:`hold_back`.

    Args:
        pairs: source and target of each: one is on a device, the other in pinned memory; they are
            contiguous in the same order, and have the same number of bytes.
        keep: True keeps the arrays until all have arrived, whoever lets go of them, and no longer.
            The pools of CuPy would hand out their memory while it is still read or written. False
            has whoever lets go of the copies wait for them.
    """

    def __init__(self, pairs: Iterable[tuple[Array, Array]], keep: bool = False) -> None:
        self._pairs: dict[str, list[tuple[Array, Array]]] = {}
        for source, target in pairs:
            if source.nbytes:
                home = device_of(source if is_cupy(source) else target)
                self._pairs.setdefault(home, []).append((source, target))
        self._streams: dict[str, Any] = {}
        self._arrived: dict[str, Any] = {}
        # Words that are written behind the last copies: who looks at them disturbs no graph that
        # another thread captures, as asking for the state of an event would.
        self._marks: dict[str, tuple[Array, np.ndarray[Any, Any]]] = {}
        for home in self._pairs:  # what may fail comes before the first copy
            with gpu.on(home):
                cp = gpu.cupy()
                self._streams[home] = cp.cuda.Stream(non_blocking=True)
                self._marks[home] = cp.empty(1, np.uint32), transfer.pinned((1,), np.uint32)
                self._marks[home][1][0] = 0
        try:
            for home in self._pairs:
                self._launch(home)
            if keep and self._pairs:
                threading.Thread(target=self._release, daemon=True).start()
            elif self._pairs:
                weakref.finalize(self, _wait_for, list(self._arrived.values())).atexit = False
        except BaseException:
            for stream in self._streams.values():
                stream.synchronize()
            raise

    @property
    def are_done(self) -> bool:
        """Whether all of them have arrived."""
        return all(word[0] for _, word in self._marks.values())

    def wait(self) -> bool:
        """Wait until all have arrived, and let go of the arrays; True, for then they have."""
        _wait_for(self._arrived.values())
        self._pairs.clear()
        return True

    def hold_back(self) -> None:
        """Have what is put on the current stream of each device from now on come after them."""
        for home, event in self._arrived.items():
            with gpu.on(home):
                gpu.cupy().cuda.get_current_stream().wait_event(event)

    def _launch(self, home: str) -> None:
        cuda = gpu.cupy().cuda
        stream, (mark, word) = self._streams[home], self._marks[home]
        with gpu.on(home):
            stream.wait_event(cuda.get_current_stream().record())
            for source, target in self._pairs[home]:
                _copy(source, target, stream)
            mark.data.memset_async(1, mark.nbytes, stream)
            _copy(mark, word, stream)
            # Who waits for it sleeps: by default, CUDA keeps a core busy with waiting.
            self._arrived[home] = stream.record(cuda.Event(block=True, disable_timing=True))

    def _release(self) -> None:
        while not self.are_done:
            time.sleep(POLL_SECONDS)
        self._pairs.clear()


def _wait_for(events: Iterable[Any]) -> None:
    for event in events:
        event.synchronize()


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
    copies = Copies([(contiguous(array, "C"), host) for array, host in pairs])
    copies.hold_back()
    return copies.wait
