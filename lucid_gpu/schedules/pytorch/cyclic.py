"""Those that go up and down between rates of their own, and move the momentum the other way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lucid_gpu.optim import checks
from lucid_gpu.schedules import bounds
from lucid_gpu.schedules.cycles import Cyclic, OneCycle
from lucid_gpu.schedules.functions import Schedule
from lucid_gpu.schedules.scheduler import Scheduler

Values = float | Sequence[float]


class CyclicLR(Scheduler):
    """Rates on a triangle wave, and momentum on its mirror image.

    :class:`~lucid_gpu.schedules.Cyclic`. The rate of the optimizer does not matter.

    Args:
        optimizer: whose learning rates to schedule.
        base_lr: the low end, ≥ 0, or a list.
        max_lr: the high end, ≥ 0, or a list.
        step_size_up: steps up, > 0.
        step_size_down: steps down, > 0; None for as many.
        mode: ``"triangular"``, ``"triangular2"`` or ``"exp_range"``.
        gamma: ≥ 0, for ``"exp_range"``.
        scale_fn: takes the place of ``mode``.
        scale_mode: ``"cycle"`` or ``"iterations"``: what ``scale_fn`` gets.
        cycle_momentum: True moves momentum, or β1, too.
        base_momentum: its low end, ≥ 0, or a list.
        max_momentum: its high end, ≥ 0, or a list.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.

    Raises:
        ValueError: beside what :class:`Scheduler` raises: the optimizer has no momentum to cycle.
    """

    def __init__(
        self,
        optimizer: Any,
        base_lr: Values,
        max_lr: Values,
        step_size_up: float = 2000,
        step_size_down: float | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: Values = 0.8,
        max_momentum: Values = 0.9,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        _check(optimizer, cycle_momentum)

        def make(ends: tuple[float, float]) -> Cyclic:
            low, high = ends
            shape = (step_size_up, step_size_down, mode, gamma, scale_fn, scale_mode)
            return Cyclic(low, high, *shape)

        lr = _pairs(make, base_lr=base_lr, max_lr=max_lr)
        schedules = {"lr": lr}
        if cycle_momentum:
            momentum = _pairs(make, max_momentum=max_momentum, base_momentum=base_momentum)
            schedules["momentum"] = momentum
        super().__init__(optimizer, every=every, last_epoch=last_epoch, **schedules)


class OneCycleLR(Scheduler):
    """Rates up to ``max_lr`` and down to next to nothing, where they stay; momentum mirrors them.

    :class:`~lucid_gpu.schedules.OneCycle`. The rate of the optimizer does not matter.

    Args:
        optimizer: whose learning rates to schedule.
        max_lr: the peak, ≥ 0, or a list.
        total_steps: n, a whole number ≥ 1; None for ``epochs · steps_per_epoch``.
        epochs: a whole number ≥ 1.
        steps_per_epoch: a whole number ≥ 1.
        pct_start: the share of the rise, a float in [0, 1].
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: True moves momentum, or β1, too.
        base_momentum: the momentum at the peak, ≥ 0, or a list.
        max_momentum: that at both ends, ≥ 0, or a list.
        div_factor: > 0; the rate begins at ``max_lr / div_factor``.
        final_div_factor: > 0; it ends at ``max_lr / div_factor / final_div_factor``.
        three_phase: True goes down to where it began first.
        last_epoch: see :class:`Scheduler`.
        every: see :class:`Scheduler`.

    Raises:
        ValueError: beside what :class:`Scheduler` raises: there is no number of steps, or the
            optimizer has no momentum to cycle.
    """

    def __init__(
        self,
        optimizer: Any,
        max_lr: Values,
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: Values = 0.85,
        max_momentum: Values = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        *,
        every: str | None = None,
    ) -> None:
        _check(optimizer, cycle_momentum)
        factors = {"div_factor": div_factor, "final_div_factor": final_div_factor}
        bounds.number(factors, *factors, above=0)
        steps = _total(total_steps, epochs, steps_per_epoch)
        shape = (steps, pct_start, anneal_strategy, three_phase)

        def rates(peak: tuple[float]) -> OneCycle:
            start = peak[0] / factors["div_factor"]
            return OneCycle(start, peak[0], start / factors["final_div_factor"], *shape)

        def momenta(ends: tuple[float, float]) -> OneCycle:
            high, low = ends
            return OneCycle(high, low, high, *shape)

        schedules = {"lr": _pairs(rates, max_lr=max_lr)}
        if cycle_momentum:
            momentum = _pairs(momenta, max_momentum=max_momentum, base_momentum=base_momentum)
            schedules["momentum"] = momentum
        super().__init__(optimizer, every=every, last_epoch=last_epoch, **schedules)


def _check(optimizer: Any, cycle_momentum: bool) -> None:
    """Raise unless there is momentum to be cycled, or it is not to be."""
    checks.switches({"cycle_momentum": cycle_momentum}, "cycle_momentum")
    for index, group in enumerate(getattr(optimizer, "param_groups", ())):
        if cycle_momentum and "betas" not in group and not group.get("momentum"):
            raise ValueError(
                f"parameter group {index} has no momentum to cycle: give the optimizer some, or "
                "pass cycle_momentum=False"
            )


def _pairs(make: Callable[[Any], Schedule], **ends: Values) -> Schedule | list[Schedule]:
    """Return what is made of the named values, or of lists of them, one for each group."""
    lengths = {len(value) for value in ends.values() if isinstance(value, list | tuple)}
    if len(lengths) > 1:
        raise ValueError(f"{' and '.join(ends)} must be lists of the same length")
    count = next(iter(lengths), 1)
    of_groups = [
        tuple(value[index] if isinstance(value, list | tuple) else value for value in ends.values())
        for index in range(count)
    ]
    for values in of_groups:
        bounds.number(dict(zip(ends, values, strict=True)), *ends, least=0)
    made = [make(values) for values in of_groups]
    return made if lengths else made[0]


def _total(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        return total_steps
    if epochs is None or steps_per_epoch is None:
        raise ValueError("total_steps is missing: give it, or epochs and steps_per_epoch")
    fields = {"epochs": epochs, "steps_per_epoch": steps_per_epoch}
    bounds.whole(fields, *fields, least=1)
    return fields["epochs"] * fields["steps_per_epoch"]
