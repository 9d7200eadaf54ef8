"""Copies of a tree's arrays that stay as they are while training goes on."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_gpu.device import overlap, transfer
from lucid_gpu.device.arrays import Array, is_cupy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lucid_gpu.checkpoint.shards import Rest


class Staging:
    """Host buffers that are kept from one save to the next: fresh memory is slow to write."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int, bool], np.ndarray[Any, Any]] = {}

    def take(
        self, arrays: Mapping[str, Array]
    ) -> tuple[dict[str, np.ndarray[Any, Any]], Callable[[], object]]:
        """Copy arrays to the host, ordered before whatever the caller does to them next.

        Returns:
            The copies, and a function to call before they are read: it waits for the devices.
        """
        buffers: dict[tuple[str, int, bool], np.ndarray[Any, Any]] = {}
        copies: dict[str, np.ndarray[Any, Any]] = {}
        for name, array in arrays.items():
            key = (name, array.nbytes, is_cupy(array))
            buffers[key] = self._buffers[key] if key in self._buffers else _allocate(array)
            copies[name] = np.ndarray(array.shape, array.dtype, buffers[key])
        self._buffers = buffers
        on_device = [(a, copies[name]) for name, a in arrays.items() if is_cupy(a)]
        arrived = overlap.download_later(on_device)
        for name, array in arrays.items():
            if not is_cupy(array):
                np.copyto(copies[name], array)
        return copies, arrived


def _allocate(array: Array) -> np.ndarray[Any, Any]:
    size = max(array.nbytes, 1)
    return transfer.pinned_block(size) if is_cupy(array) else np.empty(size, np.uint8)


REST = 8
"""How many times as long as it writes the thread rests. Measured: a step of training on as many
threads as there are cores is then slowed by a few percent; without a rest, by a third."""


NICENESS = 10


class BackgroundWriter:
    """Runs one save at a time in a thread of low priority, and keeps its error until asked.

    The thread rests between two pieces, so that it does not take memory bandwidth and cores from
    training, unless somebody waits for it.
    """

    def __init__(self) -> None:
        self._is_awaited = threading.Event()
        self._jobs: list[Future[None]] = []
        self._pool: ThreadPoolExecutor | None = None
        # An error that nobody asked for is printed when the program ends.
        weakref.finalize(self, _surface, self._jobs)

    def start(self, job: Callable[[Rest], None]) -> None:
        """Run ``job`` in the thread; ``wait`` comes first."""
        self._is_awaited.clear()
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "checkpoint", _lower_priority)
        self._jobs.append(self._pool.submit(job, self._rest))

    def join(self) -> None:
        """Wait for the job, and leave its error to ``wait``."""
        self._is_awaited.set()
        wait(self._jobs)

    def wait(self) -> None:
        """Wait for the job, and raise its error once."""
        self._is_awaited.set()
        _surface(self._jobs)

    def close(self) -> None:
        """Wait for the job, end the thread, and raise the job's error."""
        try:
            self.wait()
        finally:
            if self._pool is not None and not self.is_writing:
                self._pool.shutdown()
                self._pool = None

    @property
    def is_writing(self) -> bool:
        """Whether a job is running or about to."""
        return not all(job.done() for job in self._jobs)

    def forget(self) -> None:
        """Drop the job and the thread: a forked process has neither."""
        self._jobs.clear()
        self._pool = None
        self._is_awaited = threading.Event()

    def _rest(self, seconds: float) -> None:
        self._is_awaited.wait(REST * seconds)


def _surface(jobs: list[Future[None]]) -> None:
    while jobs:
        try:
            jobs[0].result()
        finally:
            if jobs[0].done():
                jobs.pop(0)


def _lower_priority() -> None:
    """Let the training loop go first: on Linux, threads have priorities of their own."""
    thread = threading.get_native_id()
    # Nobody but root may raise the priority of a program that was started with a lower one.
    if sys.platform == "linux" and os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:
        os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
