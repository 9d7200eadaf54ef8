"""Schedules: pure functions f(t, base) of the steps taken and of what the option was at first.

Each is a frozen dataclass: it can be printed, compared and pickled, and knows no optimizer. What it
returns is computed in float64 on the host. t is 0 for the first step; it may be a fraction.

The formulas follow PyTorch's learning-rate schedulers, whose names and arguments are in
:mod:`lucid_gpu.schedules.pytorch`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from lucid_gpu.optim import checks
from lucid_gpu.schedules import bounds

Schedule: TypeAlias = Callable[[float, float], float]
"""f(t, base): what an option is after t steps of the schedule, if it was ``base`` at first."""

STRATEGIES = ("cos", "linear")
"""How a value goes from one to another."""


@dataclass(frozen=True)
class Lambda:
    """base · λ(t).

    Args:
        lr_lambda: λ, any function of t.

    Example:
        >>> Lambda(lambda t: 0.5**t)(2, 0.1)
        0.025
    """

    lr_lambda: Callable[[Any], float]

    def __post_init__(self) -> None:
        bounds.function(vars(self), "lr_lambda")

    def __call__(self, t: float, base: float) -> float:
        return base * self.lr_lambda(t)


@dataclass(frozen=True)
class Multiplicative:
    """base · λ(1) · λ(2) · … · λ(⌊t⌋).

    The product is kept from one call to the next; a call for an earlier t begins anew.

    Args:
        lr_lambda: λ, a pure function of a whole number.

    Example:
        >>> Multiplicative(lambda t: 0.5)(2, 0.1)
        0.025
    """

    lr_lambda: Callable[[int], float]
    _product: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bounds.function(vars(self), "lr_lambda")

    def __call__(self, t: float, base: float) -> float:
        t = math.floor(t)
        known, product = next(iter(self._product.items()), (0, 1.0))
        if known > t:
            known, product = 0, 1.0
        for step in range(known + 1, t + 1):
            product *= self.lr_lambda(step)
        self._product.clear()
        self._product[t] = product
        return base * product


@dataclass(frozen=True)
class Step:
    """base · γ^⌊t / step_size⌋.

    Args:
        step_size: how many steps a value lasts, a whole number ≥ 1.
        gamma: γ ≥ 0.

    Example:
        >>> [Step(2, 0.5)(t, 0.1) for t in range(5)]
        [0.1, 0.1, 0.05, 0.05, 0.025]
    """

    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        bounds.whole(vars(self), "step_size", least=1)
        bounds.number(vars(self), "gamma", least=0)

    def __call__(self, t: float, base: float) -> float:
        return base * math.pow(self.gamma, t // self.step_size)


@dataclass(frozen=True)
class MultiStep:
    """base · γ^n, where n counts the milestones ≤ t.

    Args:
        milestones: steps ≥ 0 in any order; one that is there twice counts twice.
        gamma: γ ≥ 0.

    Example:
        >>> [MultiStep([1, 3], 0.5)(t, 0.1) for t in range(4)]
        [0.1, 0.05, 0.05, 0.025]
    """

    milestones: tuple[float, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        milestones = bounds.moments("milestones", self.milestones)
        object.__setattr__(self, "milestones", tuple(sorted(milestones)))
        bounds.number(vars(self), "gamma", least=0)

    def __call__(self, t: float, base: float) -> float:
        return base * math.pow(self.gamma, bisect_right(self.milestones, t))


@dataclass(frozen=True)
class Constant:
    """base · factor while t < total_iters, then base.

    Args:
        factor: in [0, 1].
        total_iters: ≥ 0.

    Example:
        >>> [Constant(0.5, 2)(t, 0.1) for t in range(3)]
        [0.05, 0.05, 0.1]
    """

    factor: float = 1 / 3
    total_iters: float = 5

    def __post_init__(self) -> None:
        bounds.number(vars(self), "factor", least=0, most=1)
        bounds.number(vars(self), "total_iters", least=0)

    def __call__(self, t: float, base: float) -> float:
        return base * self.factor if t < self.total_iters else base


@dataclass(frozen=True)
class Linear:
    """base · (s + (e − s)·q) with q = min(t, n) / n, which is 1 if n = 0.

    Args:
        start_factor: s in [0, 1].
        end_factor: e in [0, 1].
        total_iters: n ≥ 0.

    Example:
        >>> [Linear(0.5, 1, 2)(t, 0.8) for t in range(4)]
        [0.4, 0.6000000000000001, 0.8, 0.8]
    """

    start_factor: float = 1 / 3
    end_factor: float = 1.0
    total_iters: float = 5

    def __post_init__(self) -> None:
        bounds.number(vars(self), "start_factor", "end_factor", least=0, most=1)
        bounds.number(vars(self), "total_iters", least=0)

    def __call__(self, t: float, base: float) -> float:
        rise = (self.end_factor - self.start_factor) * _share(t, self.total_iters)
        return base * (self.start_factor + rise)


@dataclass(frozen=True)
class Exponential:
    """base · γᵗ.

    Args:
        gamma: γ ≥ 0.

    Example:
        >>> Exponential(0.5)(2, 0.1)
        0.025
    """

    gamma: float

    def __post_init__(self) -> None:
        bounds.number(vars(self), "gamma", least=0)

    def __call__(self, t: float, base: float) -> float:
        return base * math.pow(self.gamma, t)


@dataclass(frozen=True)
class Polynomial:
    """lo + (base − lo)·(1 − min(t, n) / n)^p.

    Args:
        total_iters: n > 0.
        power: p ≥ 0.
        eta_min: lo, a finite number.

    Example:
        >>> [Polynomial(4, 2)(t, 0.16) for t in range(6)]
        [0.16, 0.09, 0.04, 0.01, 0.0, 0.0]
    """

    total_iters: float = 5
    power: float = 1.0
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        bounds.number(vars(self), "total_iters", above=0)
        bounds.number(vars(self), "power", least=0)
        bounds.number(vars(self), "eta_min")

    def __call__(self, t: float, base: float) -> float:
        rest = math.pow(1 - _share(t, self.total_iters), self.power)
        return self.eta_min + (base - self.eta_min) * rest


@dataclass(frozen=True)
class Anneal:
    """swa_lr·α + base·(1 − α), with q = min(t, n) / n, α = q or, with ``"cos"``, (1 − cos πq) / 2.

    Args:
        swa_lr: where it ends, a finite number.
        anneal_epochs: n ≥ 0; 0 is there at once.
        anneal_strategy: ``"cos"`` or ``"linear"``.

    Example:
        >>> [round(Anneal(0.02, 4)(t, 0.1), 4) for t in range(6)]
        [0.1, 0.0883, 0.06, 0.0317, 0.02, 0.02]
    """

    swa_lr: float
    anneal_epochs: float = 10
    anneal_strategy: str = "cos"

    def __post_init__(self) -> None:
        bounds.number(vars(self), "swa_lr")
        bounds.number(vars(self), "anneal_epochs", least=0)
        checks.one_of(vars(self), "anneal_strategy", STRATEGIES)

    def __call__(self, t: float, base: float) -> float:
        share = _share(t, self.anneal_epochs)
        alpha = share if self.anneal_strategy == "linear" else (1 - math.cos(math.pi * share)) / 2
        return self.swa_lr * alpha + base * (1 - alpha)


@dataclass(frozen=True)
class Noam:
    """d^−½ · min(s^−½, s·w^−1.5) with s = max(1, t); base does not matter.

    Args:
        d_model: d, the width of the model, > 0.
        warmup: w > 0, the steps until the peak.

    Source: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762.
    """

    d_model: float
    warmup: float

    def __post_init__(self) -> None:
        bounds.number(vars(self), "d_model", "warmup", above=0)

    def __call__(self, t: float, base: float) -> float:
        s = max(1, t)
        rise = s * math.pow(self.warmup, -1.5)
        return min(1 / math.sqrt(s), rise) / math.sqrt(self.d_model)


def _share(t: float, total: float) -> float:
    """How much of ``total`` steps is done, at most 1."""
    return min(t, total) / total if total > 0 else 1.0
