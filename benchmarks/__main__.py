"""``python -m benchmarks``: ask every question that the machine can answer, or those named."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import benchmarks
from benchmarks import plot, results, table
from benchmarks.protocol import Options, Unavailable
from lucid_gpu import device

MINUTES = {"cpu": 6.0, "cuda": 6.0}
"""Sampling and set-up; imports and plots come on top, and a GPU run is to end within 8."""


def questions() -> dict[str, ModuleType]:
    """Return the modules of this package that are questions, by their names, weightiest first."""
    found = (
        importlib.import_module(f"benchmarks.{info.name}")
        for info in pkgutil.iter_modules(benchmarks.__path__)
        if info.name != "__main__"
    )
    asked = [module for module in found if hasattr(module, "QUESTION")]
    # A run that is cut short has lost the least.
    return {module.NAME: module for module in sorted(asked, key=lambda module: -module.SHARE)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 if a question failed."""
    known = questions()
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = _parser(list(known))
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.questions) - set(known))
    if unknown:
        parser.error(f"unknown question {unknown[0]!r}: ask {', '.join(known)}")
    home = device.resolve(options.device) if options.device else device.default()
    minutes = options.minutes or MINUTES["cpu" if home == "cpu" else "cuda"]
    shares = sum(module.SHARE for module in known.values())
    command = " ".join(["python -m benchmarks", *arguments])
    status = 0
    for name in options.questions or known:
        question = known[name]
        seconds = 60 * minutes * question.SHARE / shares
        started = time.monotonic()
        try:
            report = question.run(Options(home, options.quick, seconds))
        except Unavailable as reason:
            print(f"{name}: not on this machine: {reason}")
            shares -= question.SHARE  # the others take its time
            continue
        except Exception:  # noqa: BLE001 - the others may still have an answer
            traceback.print_exc()
            status = 1
            continue
        recorded = results.to_json(report, command)
        path = results.write(recorded, options.results)
        title = f"{question.QUESTION} {recorded['device']['name']}, {recorded['date'][:10]}"
        table.show(report, title)
        plot.save(report, question, title, path.with_suffix(".png"))
        print(f"{path}, {path.with_suffix('.png').name} ({time.monotonic() - started:.0f} s)\n")
    return status


def _parser(known: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "questions", nargs="*", metavar="question", help=f"{', '.join(known)}; all by default"
    )
    parser.add_argument("--device", help="cpu or cuda:N; the GPU by default, if there is one")
    parser.add_argument("--minutes", type=float, help="how long all questions may take together")
    parser.add_argument("--quick", action="store_true", help="tiny work, to see that all runs")
    parser.add_argument(
        "--results", type=Path, default=results.DIRECTORY, help="where JSON and plots go"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
