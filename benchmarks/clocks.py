"""How long a step takes: for whoever waits for it, for the host, for the device."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers import Contender
from benchmarks.timing import clock
from lucid_gpu.device import gpu

SAMPLE_SECONDS = 0.02
"""Short steps are repeated until a sample takes about this long."""

MOST_REPEATS = 200

DEVICE_REPEATS = 4
"""Steps of a device sample: few, for the launches of all must fit into the queue at once.

One, where the host takes so long to launch them that they do not.
"""

SPIN = r"""
extern "C" __global__ void spin(long long nanoseconds) {
  long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""

LONGEST_SPIN = 0.3
"""Seconds."""


class Clock:
    """Takes samples of one contender, in seconds per step.

    Args:
        contender: it; it takes a few steps here.
    """

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._run(2)  # what compiles or allocates may do so at the second step as well
        self._seconds = clock(lambda: self._run(1))
        self._repeats = max(1, min(MOST_REPEATS, int(SAMPLE_SECONDS / self._seconds)))

    def wall(self) -> float:
        """Return what a step of a loop of steps takes, host and device.

        One that does not count goes ahead: while others had their turns, the machine may have taken
        caches and pages away.
        """
        self._run(1)
        return clock(lambda: self._run(self._repeats)) / self._repeats

    def wall_moving(self) -> float:
        """Return what a step takes when gradients lie elsewhere at every step.

        Setting the gradients is not counted: that is the backward pass's business.
        """
        self._run(1)
        seconds = 0.0
        repeats = max(2, self._repeats // 4)
        for turn in range(repeats):
            self._contender.use_gradients(turn % 2)
            seconds += clock(lambda: self._run(1))
        return seconds / repeats

    def host(self, moving: bool = False, counts_setting: bool = False) -> float:
        """Return what a step takes until the host may go on, with an idle device before it.

        Args:
            moving: whether gradients lie elsewhere at every step.
            counts_setting: whether setting them counts, as it does for who writes the loop.
        """
        seconds = 0.0
        repeats = max(2, self._repeats // 4)
        for turn in range(repeats):
            if moving:
                taken = clock(partial(self._contender.use_gradients, turn % 2))
                seconds += taken if counts_setting else 0.0
            seconds += clock(self._contender.step)
            self._contender.synchronize()
        return seconds / repeats

    def host_toggling(self) -> float:
        """Return what a step takes when one gradient is missing at every second one."""
        seconds = 0.0
        repeats = max(2, self._repeats // 4) // 2 * 2
        for turn in range(repeats):
            self._contender.drop_a_gradient(turn % 2 == 0)
            seconds += clock(self._contender.step)
            self._contender.synchronize()
        return seconds / repeats

    def setting_gradients(self) -> float:
        """Return what handing over a set of gradients takes."""
        start = time.perf_counter()
        self._contender.use_gradients(1)
        self._contender.use_gradients(0)
        return (time.perf_counter() - start) / 2

    def _run(self, steps: int) -> None:
        for _ in range(steps):
            self._contender.step()
        self._contender.synchronize()


class DeviceClock:
    """Takes samples of a contender in device time, with CUDA events on the default stream.

    The device spins until the host has launched all, so that no launch waits for the host. The
    queue holds about a thousand launches: a contender with more is timed at the host's pace, as
    its users are.
    """

    def __init__(self, contender: Contender) -> None:
        cp = gpu.cupy()
        self._contender = contender
        self._spin = cp.RawKernel(SPIN, "spin")
        self._events = [cp.cuda.Event() for _ in range(2)]
        self._elapsed: Any = cp.cuda.get_elapsed_time
        self._repeats = 1
        self._launch()
        contender.synchronize()
        self._host_seconds = clock(self._launch)
        if DEVICE_REPEATS * self._host_seconds < LONGEST_SPIN:
            self._repeats = DEVICE_REPEATS
        self._host_seconds *= self._repeats
        contender.synchronize()

    def __call__(self) -> float:
        """Return the seconds that the device takes for a step."""
        nanoseconds = int(1e9 * min(1.5 * self._host_seconds + 1e-4, LONGEST_SPIN))
        self._spin((1,), (1,), (np.int64(nanoseconds),))
        start, end = self._events
        start.record()
        self._launch()
        end.record()
        end.synchronize()
        return float(self._elapsed(start, end)) / 1000 / self._repeats

    def _launch(self) -> None:
        for _ in range(self._repeats):
            self._contender.step()
