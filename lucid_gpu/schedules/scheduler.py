"""Scheduler: a counter that writes what schedules give into the groups of an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary

from lucid_gpu.optim import checks
from lucid_gpu.schedules import bounds, inputs
from lucid_gpu.schedules.functions import Schedule


class Optimizer(Protocol):
    """What is scheduled: anything with groups of options.

    If it has ``require_valid(options)``, that checks what is to be written.
    """

    param_groups: list[dict[str, Any]]


class Scheduler:
    """Writes scheduled options into the groups of an optimizer, as plain numbers.

    It writes when it is made, for t = 0, at each :meth:`step` and when a state is loaded; so
    ``param_groups[i]["lr"]`` is always the rate of the next step. What was written in between by
    hand is overwritten.

    What an option was at first, the base, is kept in its group as ``initial_lr``,
    ``initial_weight_decay`` and so on. So it travels with the state dict of the optimizer, and
    optimizer and scheduler may be made and loaded in any order.

    Args:
        optimizer: anything with ``param_groups``.
        every: ``"step"`` ticks with the optimizer: once for each of its steps, however often the
            closure of a step runs, for each replay that ``before_replay()`` announces, and not
            while a CUDA graph is being recorded; a step that is skipped on the device is a step.
            ``"update"`` leaves out those that were skipped, and waits after each step to know it;
            of a replay it knows with the next one.
            None: call :meth:`step` yourself.
        last_epoch: PyTorch's way to go on in a group that has its base: it starts at
            t = ``last_epoch + 1``. To restore a scheduler, load its state instead.
        schedules: for each option the schedule ``f(t, base)``, or a list of one per group.
            ``momentum`` stands for β1 where a group has ``betas``. A group that is added later
            takes the last one, or that of the group whose number it holds as ``like``.

    Attributes:
        optimizer: the argument.
        every: the argument.
        last_epoch: t, the number of ticks, as PyTorch calls it.
        schedules: for each option, a tuple of one schedule for all groups, or of one per group.

    Raises:
        TypeError: no schedule is given; a schedule is no function; an option is no number; or the
            optimizer does not say when it steps.
        ValueError: a group lacks an option; there are not as many schedules as groups; what a
            schedule gives is not finite or out of the bounds of the option, now or at a later
            step; or another scheduler ticks with the optimizer for the same option. Nothing was
            changed.
        KeyError: ``last_epoch`` is given, and a group has no base.

    Example:
        >>> from lucid_gpu import Parameter, schedules
        >>> from lucid_gpu.optim import AdamW
        >>> optimizer = AdamW([Parameter([1.0])], lr=0.1)
        >>> scheduler = Scheduler(optimizer, every="step", lr=schedules.warmup_cosine(2, 6))
        >>> for _ in range(3):
        ...     optimizer.step()
        >>> round(optimizer.param_groups[0]["lr"], 4)
        0.0854
        >>> scheduler.state_dict()
        {'last_epoch': 3}
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        every: str | None = None,
        last_epoch: int = -1,
        **schedules: Schedule | Iterable[Schedule],
    ) -> None:
        if not isinstance(getattr(optimizer, "param_groups", None), list):
            raise TypeError(
                f"optimizer must be one, with a list param_groups, not {type(optimizer).__name__}"
            )
        checks.one_of({"every": every}, "every", (None, "step", "update"))
        if not schedules:
            raise TypeError("no schedule is given: name an option, as in lr=Cosine(100)")
        self.optimizer: Optimizer = optimizer
        self.every = every
        self._skipped = self._skips()
        self.schedules = {
            option: inputs.per_group(option, given, len(optimizer.param_groups))
            for option, given in schedules.items()
        }
        start: dict[str, Any] = {"last_epoch": last_epoch}
        bounds.whole(start, "last_epoch", least=-1)
        self.last_epoch: float = start["last_epoch"] + 1
        self._require_alone()
        if last_epoch >= 0:
            self._require_bases()
        register = self._registration()
        self._write(self.last_epoch)
        self._claim()
        self._handle = register(self._tick) if register else None

    def step(self, epoch: float | None = None) -> None:
        """Count a tick and write the options of the next step.

        Args:
            epoch: t itself, ≥ 0, instead of one more than it was.

        Raises:
            TypeError: ``epoch`` or what a schedule gives is no number.
            ValueError: ``epoch`` is negative, or what a schedule gives is not finite or out of the
                bounds of its option. Nothing was changed.
            RuntimeError: another scheduler was made since for the same option.
        """
        self._go_to(self.last_epoch + 1 if epoch is None else inputs.moment("epoch", epoch))

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    @property
    def base_lrs(self) -> list[float]:
        """The base of the learning rate of each group."""
        return [group.get("initial_lr", group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"last_epoch": t}``; the bases are in the state dict of the optimizer."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go to the t of a state dict, and write the options of that step at once.

        Args:
            state_dict: what :meth:`state_dict` returned, or that of any scheduler of PyTorch; of
                nested ones the outermost ``last_epoch`` counts.

        Raises:
            TypeError: it is no dict, or its t no number.
            KeyError: it has no ``last_epoch``.
            ValueError: its t is negative, or what a schedule gives there is out of bounds. Nothing
                was changed.
            RuntimeError: another scheduler was made since for the same option.
        """
        self._go_to(inputs.saved_moment(state_dict))

    def detach(self) -> None:
        """Stop ticking with the optimizer; :meth:`step` goes on working."""
        if self._handle is not None:
            self._handle.remove()
        self.every = self._handle = None

    def __repr__(self) -> str:
        shown = {
            option: of_groups[0] if len(of_groups) == 1 else list(of_groups)
            for option, of_groups in self.schedules.items()
        }
        listed = "".join(f", {option}={schedule!r}" for option, schedule in shown.items())
        return f"{type(self).__name__}(t={self.last_epoch}{listed})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_handle": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # Copies of optimizers leave their hooks behind, so the copy of a scheduler brings its own.
        register = self._registration()
        self._handle = register(self._tick) if register else None

    def _tick(self, _: Any) -> None:
        skipped = self._skips()
        if skipped == self._skipped:
            self.step()
        self._skipped = skipped

    def _skips(self) -> int:
        """Return how many steps were skipped, if that matters; waits for a GPU to know."""
        skipped: int = getattr(self.optimizer, "skipped", 0) if self.every == "update" else 0
        return skipped

    def _go_to(self, t: float) -> None:
        self._require_writer()
        self._write(t)
        self.last_epoch = t

    def _write(self, t: float) -> None:
        """Write the options of all groups, or raise and leave them as they were."""
        groups = self.optimizer.param_groups
        written = [self._options(index, group, t) for index, group in enumerate(groups)]
        for group, options in zip(groups, written, strict=True):
            group.update(options)

    def _options(self, index: int, group: dict[str, Any], t: float) -> dict[str, Any]:
        """Return what is to be written into a group: its bases, and its options at t."""
        require_valid = getattr(self.optimizer, "require_valid", None)
        written: dict[str, Any] = {}
        for option in self.schedules:
            base = inputs.base(group, option, index)
            written[f"initial_{option}"] = base
            value = {option: self._value(index, option, t, base)}
            try:
                checks.finite(value, option)
                written.update(inputs.spelled(group, option, value[option]))
                if require_valid is not None:
                    require_valid({**group, **written})
            except (TypeError, ValueError) as error:
                schedule = self._schedule(index, option)
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(
                    f"at t = {t} {schedule!r} gives {value[option]!r} for {option!r} of group "
                    f"{index}: {error}"
                ) from error
        return written

    def _value(self, index: int, option: str, t: float, base: float) -> float:
        try:
            return self._schedule(index, option)(t, base)
        except OverflowError:
            raise ValueError(
                f"at t = {t} {self._schedule(index, option)!r} gives a number for {option!r} of "
                f"group {index} that no float can hold"
            ) from None

    def _schedule(self, index: int, option: str) -> Schedule:
        of_groups = self.schedules[option]
        groups = self.optimizer.param_groups
        while index >= len(of_groups):
            like = groups[index].get("like", len(of_groups) - 1)
            if type(like) is not int or not 0 <= like < index:
                raise ValueError(
                    f"'like' of parameter group {index} must be the number of an earlier group, "
                    f"not {like!r}"
                )
            index = like if len(of_groups) > 1 else 0
        return of_groups[index]

    def _registration(self) -> Any:
        """Return what registers a hook for ticks; None if there is no need to."""
        if self.every is None:
            return None
        register = getattr(self.optimizer, "register_step_count_hook", None)
        if register is None:
            raise TypeError(
                f"a {type(self.optimizer).__name__} does not say when it steps, as "
                f"every={self.every!r} needs: leave it out, and call step() of the scheduler"
            )
        return register

    def _require_bases(self) -> None:
        for index, group in enumerate(self.optimizer.param_groups):
            for option in self.schedules:
                if f"initial_{option}" not in group:
                    raise KeyError(
                        f"'initial_{option}' is missing in parameter group {index}: with "
                        "last_epoch, load the state of the optimizer first, or leave it out and "
                        "load the state of the scheduler"
                    )

    def _require_alone(self) -> None:
        for option, other in self._others().items():
            if other.every is not None:
                raise ValueError(
                    f"{option!r} of this optimizer is scheduled already by {other!r}, which ticks "
                    "with it: call its detach() first, or compose both with schedules.chain or "
                    "schedules.sequence"
                )

    def _require_writer(self) -> None:
        for option, other in self._others().items():
            raise RuntimeError(
                f"{option!r} of this optimizer is scheduled by {other!r}, which was made later: "
                "one scheduler writes an option; compose both with schedules.chain or "
                "schedules.sequence"
            )
        self._claim()

    def _others(self) -> dict[str, Scheduler]:
        """Return the schedulers that write the same options of the optimizer."""
        writers = _writers.get(self.optimizer, {})
        found = ((option, writers[option]()) for option in self.schedules if option in writers)
        return {option: other for option, other in found if other not in (None, self)}

    def _claim(self) -> None:
        own = ReferenceType[Scheduler](self)
        _writers.setdefault(self.optimizer, {}).update(dict.fromkeys(self.schedules, own))


_writers: WeakKeyDictionary[Any, dict[str, ReferenceType[Scheduler]]] = WeakKeyDictionary()
"""Who writes which option of an optimizer: of two schedulers, one would undo the other's work."""
