"""Tables on a device that follow the host, and memory that is let go only after its last use."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from lucid_gpu.device import gpu, transfer

STAGES = 16
"""How many steps the host may run ahead of the device before it waits for a table to be copied."""


class Table:
    """Device memory that follows a host table, through pinned copies that take turns.

    A pinned copy is refilled only once the device has read it, so the host may run ahead.

    Args:
        nbytes: its size.
        stage_bytes: the most that is copied at a time; None for all.
    """

    def __init__(self, nbytes: int, stage_bytes: int | None = None) -> None:
        cp = gpu.cupy()
        size = nbytes if stage_bytes is None else min(nbytes, stage_bytes)
        self.host = np.zeros(nbytes, np.uint8)
        self.device = cp.zeros(nbytes, np.uint8)
        release_retired()
        self._stages = [transfer.pinned((size,), np.uint8) for _ in range(STAGES)]
        self._addresses = [stage.ctypes.data for stage in self._stages]  # each look takes a µs
        self._read = [cp.cuda.Event(disable_timing=True) for _ in range(STAGES)]
        self._uploads = 0
        retire = weakref.finalize(self, _retired.extend, zip(self._read, self._stages, strict=True))
        retire.atexit = False

    def fill(self, content: np.ndarray[Any, Any]) -> None:
        """Overwrite the whole table, on the host and on the device; the host waits for it."""
        self.host[:] = content
        self.device.set(self.host)

    def upload(self, start: int, stop: int, stream: Any) -> None:
        """Copy bytes of the host table to the device."""
        turn = self._uploads % STAGES
        if self._uploads >= STAGES:
            self._read[turn].synchronize()
        nbytes = stop - start
        self._stages[turn][:nbytes] = self.host[start:stop]
        target = self.device.data + start
        target.copy_from_host_async(self._addresses[turn], nbytes, stream)
        self._read[turn].record(stream)
        self._uploads += 1


_retired: deque[tuple[Any, Any]] = deque()
"""Memory of plans that are gone, and events after which the device no longer reads it.

CuPy's pools would hand out at once what is pinned, and to later work of the stream it was made on
what is on the device.
"""


def retire(home: str, streams: Sequence[Any], memory: Any) -> None:
    """Keep device memory that was last used on another stream than it was made on.

    Args:
        home: its device.
        streams: on which it was made, and last used.
        memory: what refers to it.
    """
    made, used = streams
    if made.ptr != used.ptr:
        _retired.append((_Passed(home, used), memory))


class _Passed:
    """An event behind all that is on a stream, recorded when it is first looked at.

    Not when the memory is let go: the stream may be recording a graph, of which it must not be
    a part.
    """

    def __init__(self, home: str, stream: Any) -> None:
        self._home, self._stream = home, stream
        self._event: Any = None

    @property
    def done(self) -> bool:
        if self._event is None:
            if self._stream.is_capturing():
                return False
            with gpu.on(self._home):
                event = gpu.cupy().cuda.Event(disable_timing=True)
                self._event = self._stream.record(event)
        return bool(self._event.done)


def release_retired() -> None:
    """Let go of what the device has read."""
    for _ in range(len(_retired)):
        with suppress(IndexError):  # another thread took the last one
            event, memory = _retired.popleft()
            if not event.done:
                _retired.append((event, memory))
