"""Judging: measures the gradients of each step, clips them by their norm, and skips bad steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lucid_gpu.device import transfer
from lucid_gpu.execution.outcome import CpuOutcomes, CudaOutcomes, Handed, Outcome, Terms
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
    checks.switches(options, "skip_nonfinite")


class Judged(NamedTuple):
    """A step whose gradients are measured: its scalars, and what it is handed."""

    rows: list[Rows]
    handed: Handed


class Judging:
    """What an optimizer remembers of the outcomes of its steps.

    Attributes:
        skipped: how many steps are known to have been skipped.
        first_culprits: which gradients were not finite when a step was first skipped on the CPU.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.first_culprits: str | None = None
        self._last: Outcome | None = None
        self._on_cpu: CpuOutcomes | None = None
        self._on_gpu: CudaOutcomes | None = None
        self._of: PreparedStep | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: a copy has measured nothing yet."""
        return {"skipped": self.skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Judging.__init__(self)
        self.skipped = state["skipped"]

    @property
    def last(self) -> Outcome | None:
        """The latest outcome that has arrived, without waiting for one."""
        self._poll()
        return self._last

    def settle(self) -> None:
        """Wait until it is known which steps were skipped."""
        if self._on_gpu is not None:
            self._note(self._on_gpu.settle())

    def judge(self, prepared: PreparedStep, terms: Terms) -> Judged | None:
        """Measure the gradients of a step; None if it is known that it is to be skipped.

        Raises:
            ValueError: gradients are on several devices.
        """
        self._follow(prepared)
        if self._on_gpu is not None:
            return self._judge_on_gpu(prepared, self._on_gpu, terms)
        assert self._on_cpu is not None
        outcome = self._last = self._on_cpu.judge(prepared.gradients, terms)
        if outcome.skipped:
            if outcome.nonfinite > 0:
                self._keep_culprits(prepared.inputs.names, self._on_cpu.sums.counts.tolist())
            self.skipped += 1
            return None
        return Judged(prepared.rows(), Handed(factor=outcome.factor))

    def taken(self, terms: Terms) -> None:
        """Have the outcome of the step that was launched sent to the host."""
        if self._on_gpu is not None:
            self._on_gpu.send(terms.may_skip)

    def report(self) -> list[tuple[str, float, int]]:
        """Return, of each parameter, name, norm of the gradient and non-finite elements; waits."""
        measured = self._on_gpu or self._on_cpu
        if measured is None or self._of is None or not measured.have_measured:
            return []
        self.settle()
        scale = self._last.scale if self._last is not None else 1.0
        sums, counts = (
            transfer.to(own, "cpu") for own in (measured.sums.sums, measured.sums.counts)
        )
        with np.errstate(all="ignore"):
            norms = np.sqrt(sums) / scale
        return list(zip(self._of.inputs.names, norms.tolist(), counts.tolist(), strict=True))

    def _judge_on_gpu(self, prepared: PreparedStep, outcomes: CudaOutcomes, terms: Terms) -> Judged:
        self._poll()
        if prepared.needs_exact_counts or not outcomes.has_room:
            self.settle()
        rows = prepared.rows(outcomes.unknown)
        if terms.measures:
            self._take(prepared, outcomes)
        outcomes.judge(terms)
        return Judged(rows, Handed(address=outcomes.address, base=outcomes.known_skips))

    @staticmethod
    def _take(prepared: PreparedStep, outcomes: CudaOutcomes) -> None:
        """Have outcomes measure the gradients of this step."""
        is_noted = type(prepared.inputs) is Inputs and prepared.inputs.are_own
        noted = prepared.inputs.noted_gradients([]) if is_noted else None
        if noted is None or not outcomes.take(None, noted):
            outcomes.take(prepared.gradients(), None)

    def _follow(self, prepared: PreparedStep) -> None:
        """Measure the gradients of a prepared step from now on."""
        if prepared is self._of:
            return
        self.settle()
        devices = sorted({part.device for part in prepared.parts})
        if len(devices) > 1:
            raise ValueError(
                f"the parameters are on {' and '.join(devices)}, but max_norm, skip_nonfinite and "
                "a scaler measure gradients of one device: make an optimizer for each, and clip "
                "with lucid_gpu.gradients.clip_grad_norm_"
            )
        sizes, dtypes = prepared.measured()
        self._on_cpu = self._on_gpu = None
        if devices == ["cpu"] or not devices:
            self._on_cpu = CpuOutcomes(sizes, dtypes)
        else:
            self._on_gpu = CudaOutcomes(devices[0], sizes, dtypes)
        self._of = prepared

    def _poll(self) -> None:
        if self._on_gpu is not None:
            self._note(self._on_gpu.poll())

    def _note(self, skipped: int) -> None:
        """Take in what has arrived: so many steps were skipped."""
        assert self._on_gpu is not None
        self._last = self._on_gpu.latest or self._last
        if skipped and self._of is not None:
            self._of.take_back(skipped)
            self.skipped += skipped

    def _keep_culprits(self, names: Sequence[str], counts: Sequence[int]) -> None:
        """Keep what was wrong with the first step that was skipped."""
        if self.first_culprits is None:
            culprits = [
                f"{count} non-finite elements in {name!r}"
                for name, count in zip(names, counts, strict=True)
                if count
            ]
            more = f", and {len(culprits) - 4} more" if len(culprits) > 4 else ""
            self.first_culprits = ", ".join(culprits[:4]) + more
