"""Judging: measures the gradients of each step, clips them by their norm, and skips bad steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.execution.cuda_outcomes import WINDOW, CudaOutcomes
from lucid_gpu.execution.mixed_outcomes import MixedOutcomes
from lucid_gpu.execution.outcome import CpuOutcomes, Handed, Outcome, Terms
from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.inputs import Inputs

if TYPE_CHECKING:
    from lucid_gpu.optim.core.prepared import PreparedStep
    from lucid_gpu.optim.core.rows import Rows


def require_valid(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless the options are within their bounds."""
    if options["max_norm"] is not None:
        checks.finite(options, "max_norm")
        if options["max_norm"] <= 0:
            raise ValueError(f"max_norm must be None or > 0, not {options['max_norm']!r}")
    checks.switches(options, "skip_nonfinite", "telemetry")


class Judged(NamedTuple):
    """A step whose gradients are measured: its scalars, and what it is handed on each device."""

    rows: list[Rows]
    handed: dict[str, Handed]


class Judging:
    """What an optimizer remembers of its steps and of their outcomes.

    Attributes:
        calls: how many steps there were, skipped or not.
        skipped: how many of them are known to have been skipped.
    """

    def __init__(self) -> None:
        self.calls = self.skipped = 0
        self._first_skip: str | None = None
        self._last: Outcome | None = None
        self._at_once: CpuOutcomes | MixedOutcomes | None = None
        self._later: CudaOutcomes | None = None
        self._of: PreparedStep | None = None
        self._updated: npt.NDArray[np.bool_] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return counts alone: a copy has measured nothing yet."""
        first = self.first_skip()
        return {"calls": self.calls, "skipped": self.skipped, "_first_skip": first}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Judging.__init__(self)
        vars(self).update(state)

    @property
    def last(self) -> Outcome | None:
        """The latest outcome that has arrived, without waiting for one."""
        if self._later is not None:
            self._note(self._later.poll())
        return self._last

    def settle(self) -> None:
        """Wait until it is known which steps were skipped."""
        if self._later is not None:
            self._note(self._later.settle())

    def first_skip(self) -> str | None:
        """Return in words which step was skipped first, and why; waits."""
        self.settle()
        if self._first_skip is None and self._later is not None and self._of is not None:
            call = self._later.first_skip
            if call is not None:
                counts = self._later.culprits().tolist()
                self._first_skip = _described(call, self._of.inputs.names, counts)
        return self._first_skip

    def judge(self, prepared: PreparedStep, terms: Terms) -> Judged | None:
        """Measure the gradients of a step; None if it is known that it is to be skipped."""
        self._follow(prepared)
        if self._later is not None:
            return self._judge_later(prepared, self._later, terms)
        assert self._at_once is not None
        outcome = self._last = self._at_once.judge(prepared.gradients, terms)
        if outcome.skipped:
            self.calls += 1
            self.skipped += 1
            self._updated = None
            if self._first_skip is None:
                counts = self._at_once.measured()[1].tolist() if terms.measures else []
                self._first_skip = _described(self.calls, prepared.inputs.names, counts)
            return None
        return Judged(prepared.rows(), self._at_once.handed(outcome))

    def taken(self, terms: Terms | None, is_sent: bool = True) -> None:
        """Count a step that was launched, or is about to be replayed.

        Args:
            terms: by which it is judged; None if nothing is measured.
            is_sent: whether its outcome is to be sent to the host: not before it is launched.
        """
        self.calls += 1
        if terms is not None and self._of is not None:
            self._updated = self._of.has_gradient
        if terms is not None and self._later is not None:
            self._later.count(terms.may_skip, self.calls)
            if is_sent:
                self._later.send()

    def capture(self, prepared: PreparedStep, terms: Terms) -> dict[str, Handed]:
        """Record the measuring of gradients in the graph that the current stream records.

        Returns:
            What the step is to be handed.

        Raises:
            RuntimeError: no step was measured before, or it cannot be recorded.
        """
        has_measured = self._later is not None and self._later.have_measured
        if prepared is not self._of or (terms.measures and not has_measured):
            raise RuntimeError(
                "a step that begins to measure gradients cannot be recorded in a CUDA graph: take "
                "one ordinary step with the same options before capturing"
            )
        assert self._later is not None
        self._later.capture(terms)
        return self._later.handed(terms)

    def announce(self, prepared: PreparedStep, terms: Terms) -> Judged:
        """Bring what measures the gradients of a replay to the device.

        Raises:
            RuntimeError: the graph must be captured anew, or was not launched so often.
        """
        outcomes = self._later
        if prepared is not self._of or outcomes is None:
            raise RuntimeError("what measures gradients has changed: capture the graph anew")
        self._make_room(prepared, outcomes, prepared.sets)
        rows = prepared.rows(outcomes.unknown)
        if terms.measures:
            self._take(prepared, outcomes)
            outcomes.upload()
        return Judged(rows, outcomes.handed(terms))

    def report(self) -> list[tuple[str, float, int]]:
        """Return, of each parameter, name, norm of the gradient and non-finite elements; waits."""
        outcomes = self._later or self._at_once
        if outcomes is None or self._of is None or not outcomes.have_measured:
            return []
        self.settle()
        scale = self._last.scale if self._last is not None else 1.0
        sums, counts = outcomes.measured()
        with np.errstate(all="ignore"):
            norms = np.sqrt(sums) / scale
        return list(zip(self._of.inputs.names, norms.tolist(), counts.tolist(), strict=True))

    def told(self) -> list[tuple[float | None, float]] | None:
        """Return norm and move of each parameter in the last step; None if it told nothing."""
        if self._of is None or not self._of.terms.telemetry:
            return None
        self.settle()
        is_skipped = self._last is not None and self._last.skipped
        updated = None if is_skipped else self._updated
        return [
            (float(norm), float(move)) if updated is not None and updated[place] else (None, 0.0)
            for place, (norm, move) in enumerate(self._of.told())
        ]

    def _judge_later(self, prepared: PreparedStep, outcomes: CudaOutcomes, terms: Terms) -> Judged:
        self._make_room(prepared, outcomes, WINDOW)
        rows = prepared.rows(outcomes.unknown)
        if terms.measures:
            self._take(prepared, outcomes)
        outcomes.judge(terms)
        return Judged(rows, outcomes.handed(terms))

    def _make_room(self, prepared: PreparedStep, outcomes: CudaOutcomes, sets: int) -> None:
        """Take in what has arrived, and wait for outcomes that the next step has no rows for.

        Args:
            prepared: what it does.
            outcomes: those of its device.
            sets: for how many numbers of skipped steps there may be rows.
        """
        outcomes.send()  # that of a replay
        self._note(outcomes.poll())
        most = 1 if prepared.needs_exact_counts else min(WINDOW, max(1, sets))
        self._note(outcomes.make_room(most))

    @staticmethod
    def _take(prepared: PreparedStep, outcomes: CudaOutcomes) -> None:
        """Have the gradients of a step measured."""
        is_noted = type(prepared.inputs) is Inputs and prepared.inputs.are_own
        noted = prepared.inputs.noted_gradients([]) if is_noted else None
        if noted is None or not outcomes.take(None, noted):
            outcomes.take(prepared.gradients(), None)

    def _follow(self, prepared: PreparedStep) -> None:
        """Measure the gradients of a prepared step from now on."""
        if prepared is self._of:
            return
        self.first_skip()
        devices, sizes, dtypes = prepared.measured()
        self._at_once = self._later = None
        if prepared.home != "cpu":
            self._later = CudaOutcomes(devices, sizes, dtypes)
        elif set(devices) <= {"cpu"}:
            self._at_once = CpuOutcomes(sizes, dtypes)
        else:
            self._at_once = MixedOutcomes(devices, sizes, dtypes)
        self._of, self._updated = prepared, None

    def _note(self, skipped: int) -> None:
        """Take in what has arrived: so many steps were skipped."""
        assert self._later is not None
        self._last = self._later.latest or self._last
        if self._of is not None:
            self._of.take_back(skipped, self._later.unknown)
        self.skipped += skipped


def _described(call: int, names: Sequence[str], counts: Sequence[int]) -> str:
    """Return which step was skipped, and for which gradients, if they were counted."""
    culprits = [
        f"{count} non-finite elements in {name!r}"
        for name, count in zip(names, counts, strict=False)
        if count
    ]
    more = f", and in {len(culprits) - 4} more" if len(culprits) > 4 else ""
    found = ", ".join(culprits[:4]) or "elements that a scaler found not to be finite"
    return f"step {call} skipped: {found}{more}"
