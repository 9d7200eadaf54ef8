"""``python -m benchmarks``: ask every question that the machine can answer, or those named."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmarks
from benchmarks import machine, plot, results, table
from benchmarks.protocol import OURS, Options, Report, Unavailable
from lucid_gpu.device import gpu

MINUTES = {"cpu": 6.0, "cuda": 6.0}
"""Sampling and set-up; imports and plots come on top, and a GPU run is to end within 8."""

PATIENCE = 90
"""Seconds over its time after which a question is stopped, so that the others are answered."""


def questions() -> dict[str, ModuleType]:
    """Return the modules of this package that are questions, by name, in the order to ask."""
    found = (
        importlib.import_module(f"benchmarks.{info.name}")
        for info in pkgutil.iter_modules(benchmarks.__path__)
        if info.name != "__main__"
    )
    asked = [module for module in found if hasattr(module, "QUESTION")]
    # A run that is cut short has lost the least; what may take the machine down comes last.
    asked.sort(key=lambda module: (hasattr(module, "PINS"), -module.SHARE))
    return {module.NAME: module for module in asked}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a question, or ours in one, failed."""
    known = questions()
    parser = _parser(list(known))
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.questions) - set(known))
    if unknown:
        parser.error(f"unknown question {unknown[0]!r}: ask {', '.join(known)}")
    home = gpu.resolve(options.device) if options.device else gpu.default()
    asked = [known[name] for name in options.questions or known]
    part = sum(question.SHARE for question in asked) / sum(q.SHARE for q in known.values())
    minutes = options.minutes or part * MINUTES["cpu" if home == "cpu" else "cuda"]
    if len(asked) > 1:
        return _ask_apart(asked, home, minutes, options)
    return _ask(asked[0], Options(home, options.quick, 60 * minutes), options.results)


def _words(question: ModuleType, options: Options) -> list[str]:
    """Return the words behind ``python -m`` that ask a question."""
    minutes = f"{options.seconds / 60:.3f}"
    return ["benchmarks", question.NAME, "--device", options.device, "--minutes", minutes]


def _ask_apart(asked: list[ModuleType], home: str, minutes: float, options: Any) -> int:
    """Ask each question in a process of its own and return the worst exit status.

    What breaks the device for a process, hangs, or never gives memory back, ends with it.
    """
    deadline = time.monotonic() + 60 * minutes
    shares = sum(question.SHARE for question in asked)
    status = 0
    for question in asked:
        seconds = max(1.0, deadline - time.monotonic()) * question.SHARE / shares
        shares -= question.SHARE
        words = _words(question, Options(home, options.quick, seconds))
        command = [sys.executable, "-X", "faulthandler", "-m", *words]
        command += ["--results", str(options.results), *["--quick"] * options.quick]
        try:
            ended = subprocess.run(command, timeout=seconds + PATIENCE, check=False).returncode
        except subprocess.TimeoutExpired:
            print(f"{question.NAME}: stopped after {seconds + PATIENCE:.0f} s", flush=True)
            ended = 1
        status = status or ended
    return status


def _ask(question: ModuleType, options: Options, directory: Path) -> int:
    """Ask a question, record and show the answer, and return the exit status."""
    words = [*_words(question, options), *["--quick"] * options.quick]
    command = " ".join(["python -m", *words])  # without the folder of the results: it says nothing
    started = time.monotonic()
    machine.facts(options.device)  # remembered, for a device that has failed tells nothing

    def keep(report: Report) -> None:
        unfinished = replace(report, notes=[*report.notes, "the run ended before all was measured"])
        results.write(results.to_json(unfinished, command), directory)

    try:
        report = question.run(replace(options, keep=keep))
    except Unavailable as reason:
        print(f"{question.NAME}: not on this machine: {reason}")
        return 0
    recorded = results.to_json(report, command)
    path = results.write(recorded, directory)
    title = f"{question.QUESTION} {recorded['device']['name']}, {recorded['date'][:10]}"
    picture = path.with_suffix(".png")
    for show in (table.show, partial(plot.save, question=question, path=picture)):
        try:
            show(report, title=title)
        except ImportError as error:  # the numbers are safe
            print(f"{error}: pip install -e '.[bench]'")
    print(f"{path} ({time.monotonic() - started:.0f} s)\n")
    return int(any(m.contender == OURS and m.missing for m in report.measurements))


def _parser(known: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"{', '.join(known)}; all by default"
    )
    parser.add_argument("--device", help="cpu or cuda:N; the GPU by default, if there is one")
    parser.add_argument("--minutes", type=float, help="how long those asked may take together")
    parser.add_argument("--quick", action="store_true", help="tiny work, to see that all runs")
    parser.add_argument(
        "--results", type=Path, default=results.DIRECTORY, help="where JSON and plots go"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
