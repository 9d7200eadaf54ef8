"""Outcomes: what the gradients of a step amount to, and whether and by which factor it is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.execution.cpu_sums import CpuSums

EPSILON = 1e-6
"""Is added to the norm that gradients are clipped by, as PyTorch does."""


class Outcome(NamedTuple):
    """What the gradients of a step amounted to.

    Attributes:
        norm: the 2-norm of all gradients of the optimizer, divided by the scale; NaN if it was not
            measured, because a scaler of PyTorch had looked at the gradients.
        factor: what each gradient was multiplied by: 1 / scale, less if it was clipped.
        nonfinite: how many elements of gradients are infinite or NaN; −1 if they were not counted.
        skipped: whether the step was skipped, because some were.
        scale: of the loss; 1 without a scaler.
    """

    norm: float
    factor: float
    nonfinite: int
    skipped: bool
    scale: float


class Terms(NamedTuple):
    """By what a step is judged.

    Attributes:
        max_norm: the bound of the norm, or None.
        may_skip: whether a step with gradients that are not finite is skipped.
        scale: a float32 array of one element on the device of the gradients, by which the loss was
            multiplied; or None. On a GPU, its address will do.
        found: an int32 there that is set to 1 if elements are not finite; or None.
        heeded: an int32 there for which a step is skipped if it is not 0; or None. A float32 will
            do, and on a GPU its address.
        are_checked: whether that is all there is to know of elements that are not finite, so that
            gradients are measured for ``max_norm`` and telemetry alone.
        telemetry: whether the step tells how large parameters are, and how far they move.
    """

    max_norm: float | None = None
    may_skip: bool = False
    scale: Any = None
    found: Any = None
    heeded: Any = None
    are_checked: bool = False
    telemetry: bool = False

    @property
    def measures(self) -> bool:
        """Whether gradients have to be measured."""
        return self.max_norm is not None or self.telemetry or not self.are_checked

    @property
    def are_idle(self) -> bool:
        """Whether a step is taken whatever its gradients are, and nothing is told."""
        return self.max_norm is None and not self.may_skip and not self.telemetry


def terms_of(groups: Sequence[Mapping[str, Any]]) -> Terms:
    """Return by what the groups of an optimizer ask its steps to be judged.

    Raises:
        ValueError: they differ, though the norm is one of all gradients.
    """
    if not groups:
        return Terms()
    first = groups[0]
    for option in ("max_norm", "skip_nonfinite", "telemetry"):
        for number, group in enumerate(groups):
            if group[option] != first[option]:
                raise ValueError(
                    f"{option} is {first[option]!r} in parameter group 0 and {group[option]!r} in "
                    f"group {number}: gradients are measured together, so set it alike in all"
                )
    terms = Terms(first["max_norm"], first["skip_nonfinite"])
    return terms._replace(telemetry=first["telemetry"])


class Handed(NamedTuple):
    """What a step is handed of its outcome.

    Attributes:
        factor: of the gradients, where the host knows it.
        address: of the outcome on the device, or 0.
        base: how many skipped steps the rows of scalars know of.
        stride: from a row to the one for a skipped step more.
        sets: for how many numbers of skipped steps there may be rows, now or later.
    """

    factor: float = 1.0
    address: int = 0
    base: int = 0
    stride: int = 0
    sets: int = 1


PLAIN = Handed()
"""Of a step that nothing was measured for."""


def judged(total: float, count: int, terms: Terms) -> Outcome:
    """Return the outcome of gradients.

    Args:
        total: the canonical sum of squares; NaN if they were not measured.
        count: of elements that are not finite; −1 likewise.
        terms: by which they are judged.
    """
    scale = 1.0 if terms.scale is None else float(terms.scale[0])
    with np.errstate(all="ignore"):
        norm = np.sqrt(np.float64(total)) / scale
        factor = 1.0 / np.float64(scale)
        if terms.max_norm is not None:
            bound = terms.max_norm / (norm + EPSILON)
            factor = factor * (1.0 if bound > 1.0 else bound)
    is_bad = count > 0 or (terms.heeded is not None and bool(terms.heeded[0]))
    if terms.found is not None and count > 0:
        terms.found[...] = 1
    return Outcome(float(norm), float(factor), count, terms.may_skip and is_bad, scale)


class CpuOutcomes:
    """Outcomes of gradients on the host, which knows each at once.

    Args:
        sizes: how many elements each gradient has.
        dtypes: of each.

    Attributes:
        have_measured: whether the last gradients were measured.
    """

    def __init__(self, sizes: Sequence[int], dtypes: Sequence[np.dtype[Any]]) -> None:
        self._sums = CpuSums(sizes, dtypes)
        self.have_measured = False

    def judge(self, grads: Callable[[], Sequence[Any]], terms: Terms) -> Outcome:
        """Return what gradients amount to.

        Args:
            grads: returns them, None for those that are absent.
            terms: by which they are judged.
        """
        self.have_measured = terms.measures
        if not terms.measures:
            return judged(math.nan, -1, terms)
        self._sums.take(grads())
        self._sums.run()
        return judged(float(self._sums.total[0]), int(self._sums.total_count[0]), terms)

    def handed(self, outcome: Outcome) -> dict[str, Handed]:
        """Return what a step is handed on each device."""
        return {"cpu": Handed(factor=outcome.factor)}

    def measured(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Return the sum of squares of each gradient, and how many elements are not finite."""
        return self._sums.sums, self._sums.counts
