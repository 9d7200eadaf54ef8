"""A report as a table in the terminal."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from benchmarks.analysis import Finding, findings, is_ours
from benchmarks.protocol import Measurement, Report

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 150
"""Columns where the terminal does not say how wide it is."""

PREFIXES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"), (1.0, "B")),
}


def show(report: Report, title: str, console: Console | None = None) -> None:
    """Print a report."""
    from rich.console import Console
    from rich.table import Table

    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(title=title, title_justify="left")
    for column in ("work", "metric", "contender"):
        table.add_column(column)
    for column in ("median", "spread", "B/param", "GB/s", "of limit", "time of ours"):
        table.add_column(column, justify="right", no_wrap=True)
    measured = [found for found in findings(report.measurements) if found.measurement.samples]
    lines: dict[tuple[str, str], list[Finding]] = {}
    for found in measured:
        lines.setdefault((found.measurement.workload, found.measurement.metric), []).append(found)
    works = list(dict.fromkeys(work for work, _ in lines))
    for work, metric in sorted(lines, key=lambda line: works.index(line[0])):
        table.add_section()
        for number, found in enumerate(lines[work, metric]):
            label = ("", "") if number else (work, metric)
            style = "bold" if is_ours(found.measurement) else None
            table.add_row(*label, *_cells(found), style=style)
    console.print(table)
    for line in (*_missing(report.measurements), *_remarks(measured), *report.notes):
        console.print(f"· {line}", highlight=False, markup=False)


def quantity(value: float, unit: str) -> str:
    """Return a number with its unit, of three digits.

    Example:
        >>> quantity(0.00123, "s"), quantity(3 * 2**20, "B")
        ('1.23 ms', '3.00 MiB')
    """
    steps = PREFIXES[unit]
    step, name = next((s for s in steps if abs(value) >= s[0]), steps[-1])
    scaled = value / step
    digits = 2 - int(math.log10(abs(scaled))) if abs(scaled) >= 1 else 2
    return f"{scaled:.{max(0, digits)}f} {name}"


def _cells(found: Finding) -> list[str]:
    own = found.measurement
    per_parameter = own.traffic / own.parameters if own.traffic else math.nan
    return [
        own.contender,
        quantity(found.median, own.unit),
        f"{quantity(found.low, own.unit)} … {quantity(found.high, own.unit)}",
        _number(per_parameter, ".0f"),
        _number(found.bandwidth / 1e9, ".0f"),
        _number(found.share, ".2f"),
        f"{found.best_peer} {found.ratio:.2f} ×"
        if found.best_peer
        else _number(found.ratio, ".2f", " ×"),
    ]


def _missing(measurements: list[Measurement]) -> list[str]:
    """Return a line for each contender and reason, with the work that it concerns."""
    work: dict[tuple[str, str], list[str]] = {}
    for measurement in measurements:
        if measurement.missing:
            key = measurement.contender, measurement.missing
            work.setdefault(key, []).append(measurement.workload)
    return [
        f"missing: {contender} ({reason}) in {', '.join(dict.fromkeys(where))}"
        for (contender, reason), where in work.items()
    ]


def _remarks(measured: list[Finding]) -> list[str]:
    """Return the notes beside measurements: once where all contenders of some work share one."""
    notes: dict[str, dict[str, str]] = {}
    for measurement in (found.measurement for found in measured):
        own = notes.setdefault(measurement.workload, {})
        own[measurement.contender] = own.get(measurement.contender) or measurement.note
    lines = []
    for work, by_contender in notes.items():
        if len(set(by_contender.values())) == 1:
            lines += [f"{work}: {note}" for note in set(by_contender.values()) if note]
        else:
            lines += [f"{work}, {name}: {note}" for name, note in by_contender.items() if note]
    return lines


def _number(value: float, digits: str, suffix: str = "") -> str:
    return f"{value:{digits}}{suffix}" if math.isfinite(value) else ""
