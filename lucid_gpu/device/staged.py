"""Tables on a device that follow the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device import gpu, transfer

if TYPE_CHECKING:
    from lucid_gpu.device.keep import Use

STAGES = 16
"""How many steps the host may run ahead of the device before it waits for a table to be copied."""


class StagedTable:
    """Device memory that follows a host table, through pinned copies that take turns.

    A pinned copy is refilled only once the device has read it, so the host may run ahead.

    Args:
        nbytes: its size.
        use: by the streams that read it, and that copies are made on.
        stage_bytes: the most that is copied at a time; None for all.
    """

    def __init__(self, nbytes: int, use: Use, stage_bytes: int | None = None) -> None:
        cp = gpu.cupy()
        size = nbytes if stage_bytes is None else min(nbytes, stage_bytes)
        self.host = np.zeros(nbytes, np.uint8)
        self.device = cp.zeros(nbytes, np.uint8)
        self._stages = [transfer.pinned((size,), np.uint8) for _ in range(STAGES)]
        self._addresses = [stage.ctypes.data for stage in self._stages]  # each look takes a µs
        self._read = [cp.cuda.Event(disable_timing=True) for _ in range(STAGES)]
        self._uploads = 0
        use.keep(self, self.device)
        use.keep(self, self._stages, is_pinned=True)

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
