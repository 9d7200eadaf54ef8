"""Those whose rate is a function of t and of what it was at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lucid_gpu.schedules import bounds, inputs
from lucid_gpu.schedules.cycles import Cosine, CosineRestarts
from lucid_gpu.schedules.functions import (
    Anneal,
    Constant,
    Exponential,
    Lambda,
    Linear,
    Multiplicative,
    MultiStep,
    Noam,
    Polynomial,
    Step,
)
from lucid_gpu.schedules.scheduler import Scheduler

Factor = Callable[[int], float]


class LambdaLR(Scheduler):
    """base · λ(t): :class:`~lucid_gpu.schedules.Lambda`.

    Args:
        optimizer: whose learning rates to schedule.
        lr_lambda: λ, or a list. It is not saved.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        lr_lambda: Factor | Sequence[Factor],
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = inputs.each(Lambda, lr_lambda)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class MultiplicativeLR(Scheduler):
    """base · λ(1) · … · λ(t): :class:`~lucid_gpu.schedules.Multiplicative`.

    Args:
        optimizer: whose learning rates to schedule.
        lr_lambda: λ, or a list. It is not saved.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        lr_lambda: Factor | Sequence[Factor],
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = inputs.each(Multiplicative, lr_lambda)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class StepLR(Scheduler):
    """base · γ^⌊t / step_size⌋: :class:`~lucid_gpu.schedules.Step`.

    Args:
        optimizer: whose learning rates to schedule.
        step_size: a whole number ≥ 1.
        gamma: γ ≥ 0.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.

    Example:
        >>> from lucid_gpu import Parameter
        >>> from lucid_gpu.optim import SGD
        >>> scheduler = StepLR(SGD([Parameter([1.0])], lr=0.1), step_size=2, gamma=0.5)
        >>> scheduler.step(4)
        >>> scheduler.get_last_lr(), scheduler.base_lrs
        ([0.025], [0.1])
    """

    def __init__(
        self,
        optimizer: Any,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = Step(step_size, gamma)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class MultiStepLR(Scheduler):
    """base · γ^(number of milestones ≤ t): :class:`~lucid_gpu.schedules.MultiStep`.

    Args:
        optimizer: whose learning rates to schedule.
        milestones: steps ≥ 0 in any order; one that is there twice counts twice.
        gamma: γ ≥ 0.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        milestones: Sequence[float],
        gamma: float = 0.1,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = MultiStep(milestones, gamma)  # type: ignore[arg-type]
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class ConstantLR(Scheduler):
    """base · factor, then base: :class:`~lucid_gpu.schedules.Constant`.

    Args:
        optimizer: whose learning rates to schedule.
        factor: in [0, 1].
        total_iters: how long, ≥ 0.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        factor: float = 1 / 3,
        total_iters: float = 5,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = Constant(factor, total_iters)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class LinearLR(Scheduler):
    """base · s to base · e in a line: :class:`~lucid_gpu.schedules.Linear`.

    Args:
        optimizer: whose learning rates to schedule.
        start_factor: s in (0, 1].
        end_factor: e in [0, 1].
        total_iters: how long, ≥ 0.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        start_factor: float = 1 / 3,
        end_factor: float = 1.0,
        total_iters: float = 5,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        bounds.number({"start_factor": start_factor}, "start_factor", above=0)
        lr = Linear(start_factor, end_factor, total_iters)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class ExponentialLR(Scheduler):
    """base · γᵗ: :class:`~lucid_gpu.schedules.Exponential`.

    Args:
        optimizer: whose learning rates to schedule.
        gamma: γ ≥ 0.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self, optimizer: Any, gamma: float, last_epoch: int = -1, *, every: str | None = None
    ) -> None:
        lr = Exponential(gamma)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class PolynomialLR(Scheduler):
    """lo + (base − lo)·(1 − min(t, n)/n)^p: :class:`~lucid_gpu.schedules.Polynomial`.

    Args:
        optimizer: whose learning rates to schedule.
        total_iters: n > 0.
        power: p ≥ 0.
        last_epoch: see :class:`Scheduler`.
        eta_min: lo; Lucid has it, PyTorch does not.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        total_iters: float = 5,
        power: float = 1.0,
        last_epoch: int = -1,
        *,
        eta_min: float = 0.0,
        every: str | None = None,
    ) -> None:
        lr = Polynomial(total_iters, power, eta_min)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class CosineAnnealingLR(Scheduler):
    """lo + (base − lo)·(1 + cos(πt/T))/2, up again after T: :class:`~lucid_gpu.schedules.Cosine`.

    For one that stays down, see :func:`~lucid_gpu.schedules.warmup_cosine`.

    Args:
        optimizer: whose learning rates to schedule.
        T_max: T > 0.
        eta_min: lo.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        T_max: float,  # noqa: N803 - PyTorch's name
        eta_min: float = 0.0,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = Cosine(T_max, eta_min)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class CosineAnnealingWarmRestarts(Scheduler):
    """The same, beginning anew ever so often: :class:`~lucid_gpu.schedules.CosineRestarts`.

    Args:
        optimizer: whose learning rates to schedule.
        T_0: steps ahead of the first restart, a whole number ≥ 1.
        T_mult: how many times as long each period is as the one before, a whole number ≥ 1.
        eta_min: lo.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        T_0: int,  # noqa: N803 - PyTorch's name
        T_mult: int = 1,  # noqa: N803
        eta_min: float = 0.0,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = CosineRestarts(T_0, T_mult, eta_min)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class SWALR(Scheduler):
    """From base to swa_lr, and there: :class:`~lucid_gpu.schedules.Anneal`.

    Args:
        optimizer: whose learning rates to schedule.
        swa_lr: where to, or a list.
        anneal_epochs: how long, ≥ 0.
        anneal_strategy: ``"cos"`` or ``"linear"``.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        swa_lr: float | Sequence[float],
        anneal_epochs: float = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        lr = inputs.each(lambda value: Anneal(value, anneal_epochs, anneal_strategy), swa_lr)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)


class NoamScheduler(Scheduler):
    """Lucid's name for :func:`~lucid_gpu.schedules.noam`.

    Args:
        optimizer: whose learning rates to schedule; what they were does not matter.
        d_model: the width of the model, > 0.
        warmup_steps: steps until the peak, > 0.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.
    """

    def __init__(
        self,
        optimizer: Any,
        d_model: float,
        warmup_steps: float,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        bounds.number({"warmup_steps": warmup_steps}, "warmup_steps", above=0)
        lr = Noam(d_model, warmup_steps)
        super().__init__(optimizer, every=every, last_epoch=last_epoch, lr=lr)
