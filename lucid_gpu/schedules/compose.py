"""Schedules made of schedules, to any depth; and those that most people want, ready made."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lucid_gpu.schedules import bounds
from lucid_gpu.schedules.cycles import Cosine
from lucid_gpu.schedules.functions import Constant, Linear, Noam, Polynomial, Schedule

UNCHANGED = Constant(1.0, 0)
"""The schedule that leaves an option as it was."""


@dataclass(frozen=True)
class Chain:
    """fₙ(t, … f₂(t, f₁(t, base))): see :func:`chain`."""

    schedules: tuple[Schedule, ...]

    def __call__(self, t: float, base: float) -> float:
        for schedule in self.schedules:
            base = schedule(t, base)
        return base


@dataclass(frozen=True)
class Pieces:
    """fᵢ(t − mᵢ, base): see :func:`sequence`."""

    schedules: tuple[Schedule, ...]
    milestones: tuple[float, ...]

    def __call__(self, t: float, base: float) -> float:
        piece = bisect_right(self.milestones, t)
        begin = self.milestones[piece - 1] if piece else 0
        return self.schedules[piece](t - begin, base)


@dataclass(frozen=True)
class Hold:
    """f(min(t, until), base): see :func:`hold`."""

    schedule: Schedule
    until: float

    def __call__(self, t: float, base: float) -> float:
        return self.schedule(min(t, self.until), base)


def chain(*schedules: Schedule) -> Chain:
    """Return the schedule in which each takes what the one before it gives: f₂(t, f₁(t, base)).

    Args:
        schedules: in order; one that ignores its base ignores all before it.

    Raises:
        TypeError: there is none, or one is no function.

    Example:
        >>> from lucid_gpu.schedules import Exponential
        >>> chain(Linear(0.5, 1, 2), Exponential(0.5))(2, 0.1)
        0.025
    """
    return Chain(_functions(schedules))


def sequence(schedules: Iterable[Schedule], milestones: Sequence[float]) -> Pieces:
    """Return the schedule that is one after the other, each from its own t = 0 and from base.

    Args:
        schedules: in order.
        milestones: when each but the first takes over, ≥ 0 and rising. One that is there twice
            skips the schedule between.

    Raises:
        TypeError: a schedule is no function, or milestones are no numbers.
        ValueError: there are not as many milestones as schedules less one, or one is negative or
            less than the one before.

    Example:
        >>> warm = sequence([Linear(0.5, 1, 2), Cosine(4)], [2])
        >>> [round(warm(t, 0.1), 4) for t in range(7)]
        [0.05, 0.075, 0.1, 0.0854, 0.05, 0.0146, 0.0]
    """
    pieces = _functions(schedules)
    moments = bounds.moments("milestones", milestones)
    if len(moments) != len(pieces) - 1:
        raise ValueError(
            f"{len(pieces)} schedules need {len(pieces) - 1} milestones, not {len(moments)}"
        )
    if list(moments) != sorted(moments):
        raise ValueError(f"milestones must rise, not {list(moments)}")
    return Pieces(pieces, moments)


def hold(schedule: Schedule, until: float) -> Hold:
    """Return a schedule that stays as it is at t = ``until`` from then on.

    Args:
        schedule: any.
        until: ≥ 0.

    Raises:
        TypeError: ``schedule`` is no function, or ``until`` no number.
        ValueError: ``until`` is negative or not finite.

    Example:
        >>> hold(Cosine(4), 4)(6, 0.1)
        0.0
    """
    fields: dict[str, Any] = {"until": until}
    bounds.number(fields, "until", least=0)
    return Hold(_functions([schedule])[0], fields["until"])


def warmup_cosine(warmup: float, total: float, floor: float = 0.0) -> Pieces:
    """Return a schedule that rises from 0 to base, then falls along half a cosine and stays down.

    ::

        base · t/w                                          t < w
        floor + (base − floor)·(1 + cos(π·q)) / 2           q = min(1, (t − w) / (n − w))

    Args:
        warmup: w ≥ 0.
        total: n > w, after which it stays at ``floor``.
        floor: the value at the end, in the unit of the option.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of bounds.

    Example:
        >>> [round(warmup_cosine(2, 6)(t, 0.1), 4) for t in range(9)]
        [0.0, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0.0, 0.0, 0.0]
    """
    fall = _fall(warmup, total, floor)
    return sequence([Linear(0, 1, warmup), hold(Cosine(fall, floor), fall)], [warmup])


def warmup_linear(warmup: float, total: float, floor: float = 0.0) -> Pieces:
    """Return a schedule that rises from 0 to base, then falls in a line and stays down.

    ::

        base · t/w                                          t < w
        floor + (base − floor)·(1 − q)                      q = min(1, (t − w) / (n − w))

    Args:
        warmup: w ≥ 0.
        total: n > w, after which it stays at ``floor``.
        floor: the value at the end, in the unit of the option.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of bounds.

    Example:
        >>> [round(warmup_linear(2, 6)(t, 0.1), 4) for t in range(9)]
        [0.0, 0.05, 0.1, 0.075, 0.05, 0.025, 0.0, 0.0, 0.0]
    """
    fall = _fall(warmup, total, floor)
    return sequence([Linear(0, 1, warmup), Polynomial(fall, 1, floor)], [warmup])


def wsd(warmup: float, stable: float, decay: float, floor: float = 0.0) -> Pieces:
    """Return a trapezoid: warm up from 0 to base, stay, decay in a line to ``floor``, stay there.

    Args:
        warmup: steps of the rise, ≥ 0.
        stable: steps at base, ≥ 0.
        decay: steps of the fall, > 0.
        floor: the value at the end, in the unit of the option.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of bounds.

    Example:
        >>> [round(wsd(2, 2, 2)(t, 0.1), 4) for t in range(8)]
        [0.0, 0.05, 0.1, 0.1, 0.1, 0.05, 0.0, 0.0]

    Source: Hu et al., "MiniCPM", arXiv:2404.06395.
    """
    fields: dict[str, Any] = {"warmup": warmup, "stable": stable, "decay": decay, "floor": floor}
    bounds.number(fields, "floor")
    bounds.number(fields, "warmup", "stable", least=0)
    bounds.number(fields, "decay", above=0)
    pieces: list[Schedule] = [Linear(0, 1, warmup), UNCHANGED, Polynomial(decay, 1, floor)]
    return sequence(pieces, [warmup, warmup + stable])


def noam(d_model: float, warmup: float) -> Noam:
    """Return the Transformer's schedule: a linear rise, then the inverse square root of t.

    ::

        d^−½ · min(s^−½, s·w^−1.5),  s = max(1, t)          base does not matter

    Args:
        d_model: d, the width of the model, > 0.
        warmup: w > 0, the steps until the peak.

    Raises:
        TypeError: an argument is no number.
        ValueError: an argument is out of bounds.

    Example:
        >>> [round(noam(512, 4)(t, 0.1), 4) for t in range(7)]
        [0.0055, 0.0055, 0.011, 0.0166, 0.0221, 0.0198, 0.018]

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762.
    """
    return Noam(d_model, warmup)


def _functions(schedules: Iterable[Schedule]) -> tuple[Schedule, ...]:
    found = tuple(schedules)
    if not found:
        raise TypeError("schedules is empty: give at least one function f(t, base)")
    for schedule in found:
        if not callable(schedule):
            raise TypeError(f"a schedule must be a function f(t, base), not {schedule!r}")
    return found


def _fall(warmup: float, total: float, floor: float) -> float:
    """Return how many steps remain after the warm-up."""
    fields: dict[str, Any] = {"warmup": warmup, "total": total, "floor": floor}
    bounds.number(fields, "warmup", least=0)
    bounds.number(fields, "floor")
    bounds.number(fields, "total", above=fields["warmup"])
    length: float = fields["total"] - fields["warmup"]
    return length
