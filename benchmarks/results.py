"""Recorded runs: one JSON file per device and question, raw samples included."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.analysis import findings
from benchmarks.protocol import Measurement, Report

DIRECTORY = Path(__file__).parent / "results"

FORMAT = 1
"""Of the file; a higher one has other keys."""


def to_json(report: Report, command: str) -> dict[str, Any]:
    """Return a report as plain data, with device, driver, versions, date and command."""
    return {
        "format": FORMAT,
        "question": report.question,
        "device": {"kind": report.device, **machine.facts(report.device)},
        "versions": machine.versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "notes": report.notes,
        "measurements": [
            {**asdict(found.measurement), "summary": _summary(found)}
            for found in findings(report.measurements)
        ],
    }


def write(recorded: dict[str, Any], directory: Path) -> Path:
    """Write a recorded run and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{stem(recorded)}.json"
    path.write_text(json.dumps(recorded, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> tuple[Report, dict[str, Any]]:
    """Return the report of a recorded run, and the run itself."""
    recorded = json.loads(path.read_text(encoding="utf-8"))
    measurements = []
    for row in recorded["measurements"]:
        del row["summary"]
        measurements.append(Measurement(**row))
    report = Report(
        recorded["question"], recorded["device"]["kind"], measurements, recorded["notes"]
    )
    return report, recorded


def stem(recorded: dict[str, Any]) -> str:
    """Return the name of a run's files, without extension."""
    return f"{machine.slug(recorded['device']['name'])}-{recorded['question']}"


def _summary(found: Any) -> dict[str, Any]:
    numbers = ("median", "low", "high", "bandwidth", "share", "ratio")
    known = {name: getattr(found, name) for name in numbers}
    summary: dict[str, Any] = {
        name: value for name, value in known.items() if abs(value) < float("inf")
    }
    if found.best_peer:
        summary["best_peer"] = found.best_peer
    return summary
