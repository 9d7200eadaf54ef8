"""What the samples say: medians, spread, bandwidth, and who is how much faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.protocol import LIMIT, OURS, Measurement


@dataclass
class Finding:
    """What one measurement says beside those of its workload and metric.

    Attributes:
        measurement: it.
        median: of its samples; NaN if it is missing, as all others then.
        low: the lower quartile.
        high: the upper quartile.
        bandwidth: bytes per second.
        share: of the physical limit; 1 is as fast as a copy.
        ratio: how many times what ours takes; for ours, how many times ours the best peer takes.
        best_peer: for ours, the name of that peer.
    """

    measurement: Measurement
    median: float
    low: float
    high: float
    bandwidth: float
    share: float
    ratio: float
    best_peer: str = ""


def findings(measurements: Sequence[Measurement]) -> list[Finding]:
    """Return what each measurement says, in order of appearance."""
    return [_finding(own, _beside(own, measurements)) for own in measurements]


def is_ours(measurement: Measurement) -> bool:
    """Say whether it is this package that was measured."""
    return measurement.contender.startswith(OURS)


def paired_ratio(above: Measurement | None, below: Measurement | None) -> float:
    """Return the median of the ratios of samples that were taken in the same round."""
    if above is None or below is None or not (above.samples and below.samples):
        return float("nan")
    rounds = min(len(above.samples), len(below.samples))
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.median(np.divide(above.samples[:rounds], below.samples[:rounds])))


def _beside(own: Measurement, measurements: Sequence[Measurement]) -> dict[str, Measurement]:
    """Return the measurements of the same work and metric that have samples, by contender."""
    return {
        other.contender: other
        for other in measurements
        if (other.workload, other.metric) == (own.workload, own.metric) and other.samples
    }


def _finding(own: Measurement, beside: dict[str, Measurement]) -> Finding:
    low, median, high = (
        np.quantile(own.samples, [0.25, 0.5, 0.75]).tolist() if own.samples else [float("nan")] * 3
    )
    peers = [m for m in beside.values() if not is_ours(m) and m.contender != LIMIT]
    best = min(peers, key=lambda m: float(np.median(m.samples)), default=None)
    has_best = is_ours(own) and best is not None
    return Finding(
        own,
        median,
        low,
        high,
        bandwidth=own.traffic / median if own.unit == "s" and own.traffic else float("nan"),
        share=paired_ratio(beside.get(LIMIT), own),
        ratio=paired_ratio(best, own) if has_best else paired_ratio(own, beside.get(OURS)),
        best_peer=best.contender if has_best and best is not None else "",
    )
