"""What a question of the benchmarks takes and returns.

A question is a module of this package with

- ``NAME``, the word that asks it on the command line;
- ``QUESTION``, one line that heads its table and plot;
- ``SHARE``, its weight when the minutes of a run are divided among the questions;
- ``run(options) -> Report``;
- ``plot(report, figure)``, if bars of all its measurements would not show the answer.

Importing it must be cheap: peers are imported inside functions.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

OURS = "ours"
"""How the names of contenders that are this package begin."""

LIMIT = "limit"
"""The contender that is no optimizer but the physical limit: the same bytes, copied."""


class Unavailable(Exception):  # noqa: N818 - an answer, not a mistake
    """A peer is not installed, or the machine cannot answer a question; the text says why."""


def why_missing(error: Exception) -> str:
    """Return in one line why a contender has no samples; print where a mistake was made."""
    if isinstance(error, Unavailable):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


@dataclass(frozen=True)
class Options:
    """How to run a question.

    Attributes:
        device: ``"cpu"`` or ``"cuda:N"``.
        quick: True runs every line of code on tiny work, to see that it works.
        seconds: how long the question may take, set-up included.
        keep: is called with the report whenever something was added to it, so that a run that is
            cut short has not been in vain.
    """

    device: str
    quick: bool
    seconds: float
    keep: Callable[[Report], None] = lambda report: None  # noqa: ARG005 - by default


@dataclass
class Measurement:
    """What one contender did on one piece of work. Less is better, whatever the unit.

    Attributes:
        workload: the work.
        contender: ``"ours"`` (or ``"ours, …"``), ``"limit"``, or the name of a peer.
        samples: raw; sample i of all contenders of a workload was taken in the same round.
        metric: what was measured: ``"wall"``, ``"device"``, ``"host"``, …
        unit: ``"s"`` or ``"B"``.
        parameters: how many elements were updated; 0 if that says nothing here.
        traffic: the bytes that must move; 0 if that says nothing here.
        missing: why there are no samples; empty if there are.
        note: what a reader must know beside the number.
    """

    workload: str
    contender: str
    samples: list[float]
    metric: str = "wall"
    unit: str = "s"
    parameters: int = 0
    traffic: int = 0
    missing: str = ""
    note: str = ""

    def end(self, reason: str) -> None:
        """Say why there are no samples, or no more of them."""
        if self.samples:
            self.note = f"{len(self.samples)} samples, then {reason}"
        else:
            self.missing = reason


@dataclass
class Report:
    """The answer to a question.

    Attributes:
        question: the ``NAME`` of its module.
        device: as in the options.
        measurements: all of them, those that are missing included.
        notes: what a reader must know of all of them.
    """

    question: str
    device: str
    measurements: list[Measurement]
    notes: list[str] = field(default_factory=list)
