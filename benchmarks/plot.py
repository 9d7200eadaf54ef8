"""A report as a picture: how many times as long as ours each contender takes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.analysis import is_ours, paired_ratio
from benchmarks.protocol import LIMIT, OURS, Measurement, Report

MARKERS = "osD^vP*X<>"
LINE_HEIGHT = 0.34
"""Inches."""


def save(report: Report, question: ModuleType, title: str, path: Path) -> None:
    """Draw a report, by the question's own ``plot`` if it has one, and write it as PNG."""
    from matplotlib.figure import Figure

    lines = len({(m.workload, m.metric) for m in report.measurements if m.samples})
    figure = Figure(figsize=(9, 2 + LINE_HEIGHT * lines), layout="constrained")
    getattr(question, "plot", times_ours)(report, figure)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def times_ours(report: Report, figure: Any) -> None:
    """Draw one line per workload and metric, and on it each contender at its multiple of ours."""
    lines = _lines(report.measurements)
    axes = figure.subplots()
    contenders = dict.fromkeys(m.contender for line in lines.values() for m in line)
    contenders.pop(OURS, None)
    for number, contender in enumerate(contenders):
        points = [
            (paired_ratio(m, _ours(line)), height)
            for height, line in enumerate(lines.values())
            for m in line
            if m.contender == contender
        ]
        is_limit = contender == LIMIT
        axes.scatter(
            [x for x, _ in points],
            [y for _, y in points],
            marker="|" if is_limit else MARKERS[number % len(MARKERS)],
            s=160 if is_limit else 36,
            color="black" if is_limit else f"C{number}",
            label=contender,
            zorder=3,
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(lines)), [f"{workload}, {metric}" for workload, metric in lines])
    axes.set(xscale="log", xlabel="times what ours takes (right of 1: ours is faster)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.invert_yaxis()
    axes.grid(axis="both", alpha=0.3)
    if contenders:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def _lines(measurements: list[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """Return the measurements by workload and metric, where ours is among them."""
    lines: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in measurements:
        if measurement.samples:
            lines.setdefault((measurement.workload, measurement.metric), []).append(measurement)
    return {key: line for key, line in lines.items() if any(map(is_ours, line))}


def _ours(line: list[Measurement]) -> Measurement:
    return next(m for m in line if is_ours(m))
