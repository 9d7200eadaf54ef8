"""The schedulers of Lucid 1.20.0 by its arguments: they run one step ahead of PyTorch's.

Lucid counts a step when a scheduler is made, so that its first rate is f(1); ``last_epoch`` says
so, and a state dict of Lucid continues here where it stood. ``lr_lambda`` comes first, milestones
must rise, and ``verbose=True`` prints each rate. Its later versions count as PyTorch does: for
them, take the classes of :mod:`lucid_gpu.schedules`.

    >>> from lucid_gpu import Parameter
    >>> from lucid_gpu.optim import SGD
    >>> scheduler = ExponentialLR(SGD([Parameter([1.0])], lr=0.1), gamma=0.5)
    >>> scheduler.last_epoch, scheduler.last_lr
    (1, [0.05])
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lucid_gpu.schedules.cycles import Cosine
from lucid_gpu.schedules.functions import Exponential, Lambda, MultiStep, Schedule, Step
from lucid_gpu.schedules.scheduler import Scheduler


class LRScheduler(Scheduler):
    """What the others have in common.

    Args:
        optimizer: whose learning rates to schedule.
        schedule: of the learning rate.
        verbose: True prints the rates when they are written.
    """

    def __init__(self, optimizer: Any, schedule: Schedule, verbose: bool) -> None:
        super().__init__(optimizer, lr=schedule)
        self.verbose = verbose
        self.step()

    def step(self, epoch: float | None = None) -> None:
        """Count a step, or go to ``epoch``, and write the rates; see :class:`Scheduler`."""
        super().step(epoch)
        if self.verbose:
            rates = ", ".join(map(repr, self.last_lr))
            print(f"step {self.last_epoch}: learning rates {rates}")  # noqa: T201 - asked for

    @property
    def last_lr(self) -> list[float]:
        """The learning rate of each group."""
        return self.get_last_lr()


class LambdaLR(LRScheduler):
    """base · λ(t).

    Args:
        lr_lambda: λ.
        optimizer: whose learning rates to schedule.
        last_epoch: not read, as in Lucid.
        verbose: True prints the rates when they are written.
    """

    def __init__(
        self,
        lr_lambda: Callable[[int], float],
        optimizer: Any,
        last_epoch: int = -1,  # noqa: ARG002 - an argument there
        verbose: bool = False,
    ) -> None:
        super().__init__(optimizer, Lambda(lr_lambda), verbose)


class StepLR(LRScheduler):
    """base · γ^⌊t / step_size⌋.

    Args:
        optimizer: whose learning rates to schedule.
        step_size: a whole number ≥ 1.
        gamma: γ ≥ 0.
        last_epoch: not read, as in Lucid.
        verbose: True prints the rates when they are written.
    """

    def __init__(
        self,
        optimizer: Any,
        step_size: int,
        gamma: float = 0.1,
        last_epoch: int = -1,  # noqa: ARG002 - an argument there
        verbose: bool = False,
    ) -> None:
        super().__init__(optimizer, Step(step_size, gamma), verbose)


class MultiStepLR(LRScheduler):
    """base · γ^(number of milestones ≤ t).

    Args:
        optimizer: whose learning rates to schedule.
        milestones: at least one step, rising.
        gamma: γ ≥ 0.
        last_epoch: not read, as in Lucid.
        verbose: True prints the rates when they are written.

    Raises:
        ValueError: there are no milestones, or they do not rise.
    """

    def __init__(
        self,
        optimizer: Any,
        milestones: list[int],
        gamma: float = 0.1,
        last_epoch: int = -1,  # noqa: ARG002 - an argument there
        verbose: bool = False,
    ) -> None:
        schedule = MultiStep(milestones, gamma)  # type: ignore[arg-type]
        if not milestones or list(milestones) != list(schedule.milestones):
            raise ValueError(f"milestones must be at least one, and rise, not {milestones!r}")
        super().__init__(optimizer, schedule, verbose)


class ExponentialLR(LRScheduler):
    """base · γᵗ.

    Args:
        optimizer: whose learning rates to schedule.
        gamma: γ ≥ 0.
        last_epoch: not read, as in Lucid.
        verbose: True prints the rates when they are written.
    """

    def __init__(
        self,
        optimizer: Any,
        gamma: float,
        last_epoch: int = -1,  # noqa: ARG002 - an argument there
        verbose: bool = False,
    ) -> None:
        super().__init__(optimizer, Exponential(gamma), verbose)


class CosineAnnealingLR(LRScheduler):
    """lo + (base − lo)·(1 + cos(πt / T)) / 2.

    Args:
        optimizer: whose learning rates to schedule.
        T_max: T > 0.
        eta_min: lo.
        last_epoch: not read, as in Lucid.
        verbose: True prints the rates when they are written.
    """

    def __init__(
        self,
        optimizer: Any,
        T_max: int,  # noqa: N803 - Lucid's name
        eta_min: float = 0.0,
        last_epoch: int = -1,  # noqa: ARG002 - an argument there
        verbose: bool = False,
    ) -> None:
        super().__init__(optimizer, Cosine(T_max, eta_min), verbose)
