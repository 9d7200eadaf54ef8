"""Schedulers made of schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lucid_gpu.schedules.compose import UNCHANGED, chain, sequence
from lucid_gpu.schedules.functions import Schedule
from lucid_gpu.schedules.pytorch.plateau import ReduceLROnPlateau
from lucid_gpu.schedules.scheduler import Scheduler


class SequentialLR(Scheduler):
    """One scheduler after the other: :func:`~lucid_gpu.schedules.sequence` of their schedules.

    Only this one is to be stepped. Each part starts from base and from its own t = 0, also a
    SequentialLR within and a MultiplicativeLR, which PyTorch has start late and from elsewhere.

    Args:
        optimizer: whose options to schedule.
        schedulers: made for the same optimizer.
        milestones: when each but the first takes over, ≥ 0 and rising.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`; leave it out in the parts.

    Example:
        >>> from lucid_gpu import Parameter
        >>> from lucid_gpu.optim import SGD
        >>> from lucid_gpu.schedules import CosineAnnealingLR, LinearLR
        >>> optimizer = SGD([Parameter([1.0])], lr=0.1)
        >>> parts = [LinearLR(optimizer, 0.1, 1, 3), CosineAnnealingLR(optimizer, 6)]
        >>> scheduler = SequentialLR(optimizer, parts, [3])
        >>> scheduler.step(3)
        >>> scheduler.get_last_lr()
        [0.1]
    """

    def __init__(
        self,
        optimizer: Any,
        schedulers: Sequence[Scheduler],
        milestones: Sequence[float],
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        schedules = _composed(
            _members(optimizer, schedulers), lambda parts: sequence(parts, milestones)
        )
        super().__init__(optimizer, every=every, last_epoch=last_epoch, **schedules)


class ChainedScheduler(Scheduler):
    """Schedulers that act together: :func:`~lucid_gpu.schedules.chain` of their schedules.

    Only this one is to be stepped. Each takes what the one before it gives; in PyTorch some of
    them overwrite it instead.

    Args:
        schedulers: made for the same optimizer.
        optimizer: whose options to schedule; None for that of the schedulers.
        every: see :class:`Scheduler`; leave it out in the parts.

    Example:
        >>> from lucid_gpu import Parameter
        >>> from lucid_gpu.optim import SGD
        >>> from lucid_gpu.schedules import ConstantLR, ExponentialLR
        >>> optimizer = SGD([Parameter([1.0])], lr=0.1)
        >>> parts = [ConstantLR(optimizer, 0.5, 3), ExponentialLR(optimizer, 0.5)]
        >>> scheduler = ChainedScheduler(parts)
        >>> scheduler.step()
        >>> scheduler.get_last_lr()
        [0.025]
    """

    def __init__(
        self,
        schedulers: Sequence[Scheduler],
        optimizer: Any = None,
        *,
        every: str | None = None,
    ) -> None:
        if optimizer is None and isinstance(schedulers, Sequence) and schedulers:
            optimizer = getattr(schedulers[0], "optimizer", None)
        schedules = _composed(_members(optimizer, schedulers), lambda parts: chain(*parts))
        super().__init__(optimizer, every=every, **schedules)


def _members(optimizer: Any, schedulers: Any) -> list[Scheduler]:
    if not isinstance(schedulers, Sequence) or not schedulers:
        raise TypeError(f"schedulers must be a list of at least one, not {schedulers!r}")
    for index, member in enumerate(schedulers):
        if isinstance(member, ReduceLROnPlateau):
            raise TypeError(
                f"schedulers[{index}] is a ReduceLROnPlateau, which is no function of the step: "
                "give it the others instead, ReduceLROnPlateau(optimizer, lr=chain(…))"
            )
        if not isinstance(member, Scheduler):
            raise TypeError(
                f"schedulers[{index}] must be a Scheduler, not {member!r}: functions are composed "
                "with schedules.chain and schedules.sequence"
            )
        if member.optimizer is not optimizer:
            raise ValueError(f"schedulers[{index}] was made for another optimizer")
    return list(schedulers)


def _composed(
    members: Iterable[Scheduler], compose: Callable[[list[Schedule]], Schedule]
) -> dict[str, Any]:
    """Return for each option the composition of what the members do, for each group its own."""
    members = list(members)
    found: dict[str, Any] = {}
    for option in dict.fromkeys(option for member in members for option in member.schedules):
        of_members = [member.schedules.get(option, (UNCHANGED,)) for member in members]
        count = max(map(len, of_members))
        of_groups = [
            compose([each[index if len(each) > 1 else 0] for each in of_members])
            for index in range(count)
        ]
        found[option] = of_groups if count > 1 else of_groups[0]
    return found
