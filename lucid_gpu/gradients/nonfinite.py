"""Gradients with elements that are not finite: which they are, now or when that is known."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import transfer
from lucid_gpu.execution.measured import Measured
from lucid_gpu.gradients.inputs import gradients_of
from lucid_gpu.optim.core.groups import warn_caller

NAMED = 8
"""How many parameters an error names."""


class _Report(NamedTuple):
    """Counts on their way to the host; until they are there, an element is −1."""

    names: list[str]
    counts: npt.NDArray[np.int64]


_reports: deque[_Report] = deque()


def nonfinite_gradients(parameters: Any) -> list[str]:
    """Return the names of the parameters in whose gradients an element is not finite.

    The host waits for the GPU, once for each.

    Args:
        parameters: as of :func:`clip_grad_norm_`.

    Raises:
        TypeError: as of :func:`clip_grad_norm_`.
        RuntimeError: a stream records a CUDA graph.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0, 2.0], name="w")
        >>> w.grad = np.array([np.inf, 1], np.float32)
        >>> nonfinite_gradients([w])
        ['w']
    """
    names, grads = gradients_of(parameters, "nonfinite_gradients", is_written=False)
    if not grads:
        return []
    measured = Measured(grads)
    measured.measure()
    return [name for name, count in zip(names, measured.counts(), strict=True) if count]


def require_finite(norm: Any, measured: Measured, names: Sequence[str], p: float) -> None:
    """Raise RuntimeError if a norm is not finite; the host waits for it."""
    value = float(transfer.to(norm, "cpu")[0])
    if math.isfinite(value):
        return
    culprits = described(names, measured.counts()) or "all of whose elements are finite"
    raise RuntimeError(
        f"the norm of order {p} of all gradients is {value}: {culprits}. Nothing was clipped; pass "
        "error_if_nonfinite=False to clip in any case"
    )


def report_later(measured: Measured, names: list[str]) -> None:
    """Have elements that are not finite reported as soon as their counts are on the host."""
    _reports.extend(_Report(names, counts) for counts in measured.pending_counts())


def report_arrived() -> None:
    """Warn of elements that were not finite, as far as counts have arrived."""
    while _reports and (_reports[0].counts >= 0).all():
        culprits = described(*_reports.popleft())
        if culprits:
            warn_caller(f"clip_grad_norm_() met gradients that are not finite: {culprits}")


def described(names: Sequence[str], counts: npt.NDArray[np.int64]) -> str:
    """Return which gradients have elements that are not finite, and how many."""
    found = [(name, int(count)) for name, count in zip(names, counts, strict=True) if count]
    shown = [f"{count} non-finite elements in {name!r}" for name, count in found[:NAMED]]
    more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
    return ", ".join(shown + more)
