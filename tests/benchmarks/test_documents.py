"""docs/benchmarks.md: its tables hold the numbers of the records that they name, and no others."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest

from benchmarks import results
from benchmarks.analysis import paired_ratio
from benchmarks.table import quantity

DOCUMENT = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def tables():
    """Yield each table of numbers: the record that is named last before it, and its lines."""
    record = None
    for block in DOCUMENT.read_text(encoding="utf-8").split("\n\n"):
        named = re.search(r"\(\.\./benchmarks/results/([\w-]+\.json)\)", block)
        record = named[1] if named else record
        if record and block.startswith("|"):
            yield record, block.strip().splitlines()


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def from_record(record, header, workload):
    """Return the line that a record makes under a header."""
    metric, *contenders = cells(header)
    report, _ = results.read(results.DIRECTORY / record)
    found = {
        m.contender: m
        for m in report.measurements
        if (m.workload, m.metric) == (workload, metric) and m.samples
    }
    base = found[contenders[0]]
    numbers = [quantity(statistics.median(base.samples), base.unit)]
    for contender in contenders[1:]:
        own = found.get(contender)
        numbers.append(f"{paired_ratio(own, base):.2f}" if own else "–")
    return f"| {' | '.join([workload, *numbers])} |"


LINES = [(record, lines[0], line) for record, lines in tables() for line in lines[2:]]


@pytest.mark.parametrize(("record", "header", "line"), LINES)
def test_a_line_of_a_table_is_that_of_its_record(record, header, line):
    assert line == from_record(record, header, cells(line)[0])


def test_there_are_tables_to_compare():
    assert {record.rpartition("-")[2] for record, _, _ in LINES} == {
        "step.json",
        "host.json",
        "torch.json",
        "mixed.json",
        "memory.json",
        "checkpoint.json",
    }
