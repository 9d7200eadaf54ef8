"""Taking samples of several contenders in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

from benchmarks.protocol import why_missing

Name = TypeVar("Name", bound=Hashable)

Sample = Callable[[], float]
"""Takes one sample and returns it."""


def clock(call: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    contenders: Mapping[Name, Sample],
    seconds: float,
    at_least: int = 3,
    at_most: int = 30,
    failures: dict[Name, str] | None = None,
) -> dict[Name, list[float]]:
    """Return samples of each contender, one of each per round, after one that does not count.

    Every other round goes backwards, so that no contender always follows the same one.

    Args:
        contenders: what takes one sample, by name.
        seconds: no round begins after this time, once there are ``at_least``.
        at_least: the fewest rounds.
        at_most: the most.
        failures: takes in why a contender failed, which has no part in what follows. Without it,
            errors are raised.
    """
    deadline = time.monotonic() + seconds
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    running = list(contenders)
    for done in range(-1, at_most):
        if done >= at_least and time.monotonic() > deadline:
            break
        for name in tuple(running):
            try:
                value = contenders[name]()
            except Exception as error:
                if failures is None:
                    raise
                failures[name] = why_missing(error)
                running.remove(name)
                continue
            if done >= 0:
                samples[name].append(value)
        if done >= 0:
            running.reverse()
    return samples
