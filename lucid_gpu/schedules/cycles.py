"""Schedules that go up and down."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lucid_gpu.optim import checks
from lucid_gpu.schedules import bounds
from lucid_gpu.schedules.functions import STRATEGIES

MODES = ("triangular", "triangular2", "exp_range")
"""How the cycles of :class:`Cyclic` shrink."""


@dataclass(frozen=True)
class Cosine:
    """lo + (base − lo)·(1 + cos(πt / T)) / 2, which rises again after T.

    Args:
        T_max: T > 0, half a period.
        eta_min: lo, a finite number.

    Example:
        >>> [round(Cosine(4)(t, 0.1), 4) for t in range(6)]
        [0.1, 0.0854, 0.05, 0.0146, 0.0, 0.0146]

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    arXiv:1608.03983.
    """

    T_max: float
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        bounds.number(vars(self), "T_max", above=0)
        bounds.number(vars(self), "eta_min")

    def __call__(self, t: float, base: float) -> float:
        wave = 1 + math.cos(math.pi * t / self.T_max)
        return self.eta_min + (base - self.eta_min) * wave / 2


@dataclass(frozen=True)
class CosineRestarts:
    """:class:`Cosine` that begins anew from base: after T_0 steps, then T_0·T_mult, ….

    Args:
        T_0: steps ahead of the first restart, a whole number ≥ 1.
        T_mult: how many times as long each period is as the one before, a whole number ≥ 1.
        eta_min: lo, a finite number.

    Example:
        >>> [round(CosineRestarts(2, 2)(t, 0.1), 4) for t in range(7)]
        [0.1, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0.1]

    Source: Loshchilov & Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts",
    arXiv:1608.03983.
    """

    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        bounds.whole(vars(self), "T_0", "T_mult", least=1)
        bounds.number(vars(self), "eta_min")

    def __call__(self, t: float, base: float) -> float:
        period = self.T_0
        if self.T_mult == 1:
            t %= period
        while t >= period:
            t -= period
            period *= self.T_mult
        return Cosine(period, self.eta_min)(t, base)


@dataclass(frozen=True)
class Cyclic:
    """A triangle wave between two values, the first at t = 0; base does not matter.

    With n = up + down, r = up / n, the cycle c = ⌊1 + t/n⌋ and x = 1 + t/n − c::

        s = x / r  if x ≤ r,  else  (x − 1) / (r − 1)
        value = low + (high − low) · s · scale

    where scale is 1 (``"triangular"``), 2^−(c−1) (``"triangular2"``), γᵗ (``"exp_range"``), or
    what ``scale_fn`` returns for c or t.

    Args:
        low: a finite number.
        high: a finite number; less than ``low`` turns the wave upside down.
        step_size_up: steps from ``low`` to ``high``, > 0.
        step_size_down: steps back, > 0; None for as many.
        mode: ``"triangular"``, ``"triangular2"`` or ``"exp_range"``.
        gamma: γ ≥ 0.
        scale_fn: takes the place of ``mode``.
        scale_mode: ``"cycle"`` or ``"iterations"``: what ``scale_fn`` gets, c or t.

    Example:
        >>> [round(Cyclic(0.01, 0.1, 3, 2)(t, 0.1), 4) for t in range(6)]
        [0.01, 0.04, 0.07, 0.1, 0.055, 0.01]

    Source: Smith, "Cyclical Learning Rates for Training Neural Networks", arXiv:1506.01186.
    """

    low: float
    high: float
    step_size_up: float = 2000
    step_size_down: float | None = None
    mode: str = "triangular"
    gamma: float = 1.0
    scale_fn: Callable[[float], float] | None = None
    scale_mode: str = "cycle"

    def __post_init__(self) -> None:
        fields = vars(self)
        bounds.number(fields, "low", "high")
        lengths = ["step_size_up"] if self.step_size_down is None else _LENGTHS
        bounds.number(fields, *lengths, above=0)
        bounds.number(fields, "gamma", least=0)
        checks.one_of(fields, "scale_mode", ("cycle", "iterations"))
        if self.scale_fn is None:
            checks.one_of(fields, "mode", MODES)
        else:
            bounds.function(fields, "scale_fn")

    def __call__(self, t: float, base: float) -> float:
        up = self.step_size_up
        period = up + (up if self.step_size_down is None else self.step_size_down)
        rising = up / period
        cycle = math.floor(1 + t / period)
        x = 1 + t / period - cycle
        height = x / rising if x <= rising else (x - 1) / (rising - 1)
        return self.low + (self.high - self.low) * height * self._scale(t, cycle)

    def _scale(self, t: float, cycle: int) -> float:
        if self.scale_fn is not None:
            return self.scale_fn(cycle if self.scale_mode == "cycle" else t)
        if self.mode == "exp_range":
            return math.pow(self.gamma, t)
        return 1.0 if self.mode == "triangular" else math.ldexp(1.0, 1 - cycle)


_LENGTHS = ["step_size_up", "step_size_down"]


@dataclass(frozen=True)
class OneCycle:
    """From ``start`` up to ``peak``, then down to ``end``, where it stays; base does not matter.

    The rise ends at t = p·n − 1 and the fall at n − 1; with three phases the fall leads back to
    ``start`` by 2p·n − 2, and on to ``end`` by n − 1. Within a phase from x to y, with q from 0
    to 1::

        value = y + (x − y)/2 · (cos πq + 1)        linear: (y − x)·q + x

    A rise of no length is at ``peak`` at once, and so is a schedule of one step.

    Args:
        start: a finite number.
        peak: a finite number.
        end: a finite number.
        total_steps: n, a whole number ≥ 1.
        pct_start: p in [0, 1], a float.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        three_phase: True goes through ``start`` on the way down.

    Example:
        >>> [round(OneCycle(0.004, 0.1, 0.0, 5, 0.4)(t, 0.1), 4) for t in range(7)]
        [0.004, 0.1, 0.075, 0.025, 0.0, 0.0, 0.0]

    Source: Smith & Topin, "Super-Convergence", arXiv:1708.07120.
    """

    start: float
    peak: float
    end: float
    total_steps: int
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    three_phase: bool = False

    def __post_init__(self) -> None:
        fields = vars(self)
        bounds.number(fields, "start", "peak", "end")
        bounds.whole(fields, "total_steps", least=1)
        bounds.number(fields, "pct_start", least=0, most=1)
        if not isinstance(self.pct_start, float):
            raise TypeError(
                f"pct_start must be a float, the share of the steps, not {self.pct_start!r}"
            )
        checks.one_of(fields, "anneal_strategy", STRATEGIES)
        checks.switches(fields, "three_phase")

    def __call__(self, t: float, base: float) -> float:
        if self.total_steps == 1:
            return self.peak
        t = min(t, self.total_steps - 1)
        begin, x = 0.0, self.start
        for stop, y in self._phases():
            if t <= stop:
                break
            begin, x = stop, y
        share = (t - begin) / (stop - begin) if stop > begin else 1.0
        if self.anneal_strategy == "linear":
            return (y - x) * share + x
        return y + (x - y) / 2 * (math.cos(math.pi * share) + 1)

    def _phases(self) -> list[tuple[float, float]]:
        """Return the step at which each phase ends, and its value there."""
        rise = self.pct_start * self.total_steps - 1
        through = [(2 * rise, self.start)] if self.three_phase else []
        return [(rise, self.peak), *through, (self.total_steps - 1, self.end)]
