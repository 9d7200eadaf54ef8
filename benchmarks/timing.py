"""Taking samples of several contenders in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)

Sample = Callable[[], float]
"""Takes one sample and returns it."""


def clock(call: Callable[[], object]) -> float:
    """Return the seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(
    contenders: Mapping[Name, Sample], seconds: float, at_least: int = 3, at_most: int = 30
) -> dict[Name, list[float]]:
    """Return samples of each contender, one of each per round, after one that does not count.

    Every other round goes backwards, so that no contender always follows the same one.

    Args:
        contenders: what takes one sample, by name.
        seconds: no round begins after this time, once there are ``at_least``.
        at_least: the fewest rounds.
        at_most: the most.
    """
    deadline = time.monotonic() + seconds
    for sample in contenders.values():
        sample()
    samples: dict[Name, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for done in range(at_most):
        if done >= at_least and time.monotonic() > deadline:
            break
        for name in names:
            samples[name].append(contenders[name]())
        names.reverse()
    return samples
