"""The one schedule that remembers: it watches a metric."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lucid_gpu.optim import checks
from lucid_gpu.schedules import bounds, inputs
from lucid_gpu.schedules.compose import UNCHANGED
from lucid_gpu.schedules.functions import Schedule
from lucid_gpu.schedules.scheduler import Scheduler


class Record(NamedTuple):
    """What is remembered of the metrics seen so far."""

    best: float
    num_bad_epochs: int
    cooldown_counter: int


class ReduceLROnPlateau(Scheduler):
    """Lowers the rate when a metric has stopped getting better.

    The rate is that of a schedule times a scale, which begins at 1 in each group. Each
    :meth:`step` takes a metric a and compares it with the best b so far, with the threshold h::

        "rel"   better if a < b − h·|b|     with mode "max"  a > b + h·|b|
        "abs"   better if a < b − h         with mode "max"  a > b + h

    A step that is not better is bad; NaN is bad. No step within the cooldown is. After more than
    ``patience`` bad steps in a row the rate becomes max(rate · factor, min_lr), if that is lower by
    more than ``eps``, and the cooldown begins. So a rate ≤ 1.1e-8 is never lowered with the
    defaults.

    Args:
        optimizer: whose learning rates to schedule.
        mode: ``"min"`` or ``"max"``: which is better.
        factor: in [0, 1).
        patience: a whole number ≥ 0.
        threshold: h ≥ 0.
        threshold_mode: ``"rel"`` or ``"abs"``.
        cooldown: a whole number ≥ 0.
        min_lr: ≥ 0, or a list of one per group.
        eps: ≥ 0.
        lr: a schedule to be scaled, or a list of one per group; composed with this one as
            PyTorch's composites cannot be.

    Attributes:
        scales: of each group.
        best: b.
        num_bad_epochs: how many bad steps there were in a row.
        cooldown_counter: how many steps of the cooldown are left.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of bounds.

    Example:
        >>> from lucid_gpu import Parameter
        >>> from lucid_gpu.optim import SGD
        >>> scheduler = ReduceLROnPlateau(SGD([Parameter([1.0])], lr=0.1), factor=0.5, patience=1)
        >>> for loss in (3.0, 2.0, 2.5, 2.5):
        ...     scheduler.step(loss)
        >>> scheduler.get_last_lr()
        [0.05]
    """

    def __init__(
        self,
        optimizer: Any,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
        *,
        lr: Schedule | Iterable[Schedule] = UNCHANGED,
    ) -> None:
        fields: dict[str, Any] = {
            "mode": mode,
            "factor": factor,
            "patience": patience,
            "threshold": threshold,
            "threshold_mode": threshold_mode,
            "cooldown": cooldown,
            "eps": eps,
        }
        checks.one_of(fields, "mode", ("min", "max"))
        checks.one_of(fields, "threshold_mode", ("rel", "abs"))
        bounds.number(fields, "factor", least=0, below=1)
        bounds.number(fields, "threshold", "eps", least=0)
        bounds.whole(fields, "patience", "cooldown", least=0)
        vars(self).update(fields)
        self.min_lrs = _least_rates(optimizer, min_lr)
        self.scales: list[float] = []
        self._record = Record(math.inf if mode == "min" else -math.inf, 0, 0)
        super().__init__(optimizer, lr=lr)

    mode: str
    factor: float
    patience: int
    threshold: float
    threshold_mode: str
    cooldown: int
    eps: float

    @property
    def best(self) -> float:
        """The best metric so far."""
        return self._record.best

    @property
    def num_bad_epochs(self) -> int:
        """How many bad steps there were in a row."""
        return self._record.num_bad_epochs

    @property
    def cooldown_counter(self) -> int:
        """How many steps of the cooldown are left."""
        return self._record.cooldown_counter

    def step(self, metrics: Any, epoch: float | None = None) -> None:  # type: ignore[override]
        """Count a tick, look at a metric and write the rates of the next step.

        Args:
            metrics: a number, also NumPy's or an array of no dimension; it is read on the host.
            epoch: t itself instead of one more than it was.

        Raises:
            TypeError: ``metrics`` is no number.
            ValueError: ``epoch`` is negative, or a rate is out of bounds. Nothing was changed.
            RuntimeError: another scheduler was made since for the same rates.
        """
        t = self.last_epoch + 1 if epoch is None else inputs.moment("epoch", epoch)
        record = self._seen(inputs.metric(metrics))
        is_due = record.num_bad_epochs > self.patience
        if is_due:
            record = Record(record.best, 0, self.cooldown)
        self._become(t, record, self._lowered(t) if is_due else self.scales)

    def state_dict(self) -> dict[str, Any]:
        """Return ``last_epoch``, ``scales`` and what is remembered of the metrics."""
        return {**super().state_dict(), "scales": list(self.scales), **self._record._asdict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to what :meth:`state_dict` returned, or PyTorch's, and write the rates at once.

        Raises:
            TypeError: it is no dict, or holds something of the wrong type.
            KeyError: part of it is missing.
            ValueError: part of it is out of bounds. Nothing was changed.
            RuntimeError: another scheduler was made since for the same rates.
        """
        t = inputs.saved_moment(state_dict)
        fields = dict(state_dict)
        for name in Record._fields:
            if name not in fields:
                raise KeyError(f"state_dict has no {name!r}: it is of another kind of scheduler")
        bounds.whole(fields, "num_bad_epochs", "cooldown_counter", least=0)
        fields["best"] = inputs.metric(fields["best"])
        if "scales" in fields:
            scales = list(bounds.moments("scales", fields["scales"]))
        else:
            scales = self._scales_of(t, bounds.moments("_last_lr", fields.get("_last_lr", ())))
        self._become(t, Record(*(fields[name] for name in Record._fields)), scales)

    def _become(self, t: float, record: Record, scales: list[float]) -> None:
        before = self.scales
        self.scales = scales
        try:
            self._go_to(t)
        except BaseException:
            self.scales = before
            raise
        self._record = record

    def _seen(self, metric: float) -> Record:
        """Return what is remembered after one more metric."""
        best, bad, cooldown = self._record
        if self._is_better(metric):
            best, bad = metric, 0
        else:
            bad += 1
        return Record(best, bad, 0) if cooldown == 0 else Record(best, 0, cooldown - 1)

    def _is_better(self, metric: float) -> bool:
        sign = 1 if self.mode == "min" else -1
        metric, best = sign * metric, sign * self.best
        if math.isinf(best):
            return metric < best
        if self.threshold_mode == "abs":
            return metric < best - self.threshold
        # The margin is a share of |best|: a share of best would make worse ones better below 0.
        return metric < best * (1 - math.copysign(self.threshold, best))

    def _lowered(self, t: float) -> list[float]:
        """Return the scales of all groups after a reduction."""
        lowered = []
        for index, scheduled in enumerate(self._scheduled(t)):
            scale, least = self._scale(index), self._least(index)
            rate = scheduled * scale
            new = max(rate * self.factor, least)
            if rate - new > self.eps:
                scale = least / scheduled if new == least else scale * self.factor
            lowered.append(scale)
        return lowered

    def _scales_of(self, t: float, rates: Sequence[float]) -> list[float]:
        """Return the scales that rates stand for, which is what PyTorch saves."""
        scheduled = self._scheduled(t)
        return [rate / of if of else 1.0 for rate, of in zip(rates, scheduled, strict=False)]

    def _scheduled(self, t: float) -> list[float]:
        """Return the rate of each group ahead of its scale."""
        groups = enumerate(self.optimizer.param_groups)
        return [
            super(ReduceLROnPlateau, self)._value(index, "lr", t, inputs.base(group, "lr", index))
            for index, group in groups
        ]

    def _value(self, index: int, option: str, t: float, base: float) -> float:
        return super()._value(index, option, t, base) * self._scale(index)

    def _scale(self, index: int) -> float:
        return self.scales[index] if index < len(self.scales) else 1.0

    def _least(self, index: int) -> float:
        return self.min_lrs[min(index, len(self.min_lrs) - 1)]


def _least_rates(optimizer: Any, min_lr: Any) -> list[float]:
    count = len(getattr(optimizer, "param_groups", ()))
    given = list(min_lr) if isinstance(min_lr, list | tuple) else [min_lr]
    if len(given) not in (1, count):
        raise ValueError(f"min_lr has {len(given)} rates for {count} parameter groups")
    found = {f"min_lr[{i}]" if len(given) > 1 else "min_lr": x for i, x in enumerate(given)}
    bounds.number(found, *found, least=0)
    return list(found.values())
