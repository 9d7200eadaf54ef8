"""Draw docs/schedules.svg, a picture of every schedule: python docs/draw_schedules.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from lucid_gpu import Parameter, schedules
from lucid_gpu.optim import SGD
from lucid_gpu.schedules import Scheduler

STEPS = 60
COLUMNS = 4

SMALL = {
    "svg.fonttype": "none",
    "svg.hashsalt": "schedules",
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}

PANELS: dict[str, Callable[[Any], Scheduler]] = {
    "LambdaLR(o, λ)": lambda o: schedules.LambdaLR(o, lambda t: 1 / (1 + t / 10)),
    "MultiplicativeLR(o, λ)": lambda o: schedules.MultiplicativeLR(
        o, lambda t: 0.9 if t % 10 < 5 else 1.0
    ),
    "StepLR(o, 15, 0.5)": lambda o: schedules.StepLR(o, 15, 0.5),
    "MultiStepLR(o, [10, 40], 0.3)": lambda o: schedules.MultiStepLR(o, [10, 40], 0.3),
    "ConstantLR(o, 0.3, 20)": lambda o: schedules.ConstantLR(o, 0.3, 20),
    "LinearLR(o, 0.1, 1, 30)": lambda o: schedules.LinearLR(o, 0.1, 1, 30),
    "ExponentialLR(o, 0.95)": lambda o: schedules.ExponentialLR(o, 0.95),
    "PolynomialLR(o, 50, 2)": lambda o: schedules.PolynomialLR(o, 50, 2),
    "CosineAnnealingLR(o, 25)": lambda o: schedules.CosineAnnealingLR(o, 25),
    "CosineAnnealingWarmRestarts(o, 8, 2)": lambda o: schedules.CosineAnnealingWarmRestarts(
        o, 8, 2
    ),
    "CyclicLR(o, 0.02, 0.1, 10)": lambda o: schedules.CyclicLR(o, 0.02, 0.1, 10),
    'CyclicLR(…, mode="triangular2")': lambda o: schedules.CyclicLR(
        o, 0.02, 0.1, 10, mode="triangular2"
    ),
    'CyclicLR(…, mode="exp_range", gamma=0.97)': lambda o: schedules.CyclicLR(
        o, 0.02, 0.1, 10, mode="exp_range", gamma=0.97
    ),
    "OneCycleLR(o, 0.1, 50)": lambda o: schedules.OneCycleLR(o, 0.1, 50),
    "OneCycleLR(…, three_phase=True)": lambda o: schedules.OneCycleLR(
        o, 0.1, 50, anneal_strategy="linear", three_phase=True
    ),
    "SWALR(o, 0.03, 30)": lambda o: schedules.SWALR(o, 0.03, 30),
    "NoamScheduler(o, 512, 20)": lambda o: schedules.NoamScheduler(o, 512, 20),
    "SequentialLR(o, [linear, exponential], [15])": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1, 15), schedules.ExponentialLR(o, 0.95)], [15]
    ),
    "ChainedScheduler([linear, exponential])": lambda o: schedules.ChainedScheduler(
        [schedules.LinearLR(o, 0.1, 1, 15), schedules.ExponentialLR(o, 0.95)]
    ),
    "ReduceLROnPlateau(o, factor=0.5)": lambda o: schedules.ReduceLROnPlateau(
        o, factor=0.5, patience=8
    ),
    "warmup_cosine(10, 50, 0.01)": lambda o: Scheduler(o, lr=schedules.warmup_cosine(10, 50, 0.01)),
    "warmup_linear(10, 50)": lambda o: Scheduler(o, lr=schedules.warmup_linear(10, 50)),
    "wsd(10, 25, 15)": lambda o: Scheduler(o, lr=schedules.wsd(10, 25, 15)),
    "hold(Cosine(25), 25)": lambda o: Scheduler(o, lr=schedules.hold(schedules.Cosine(25), 25)),
}
"""For an optimizer ``o`` of rate 0.1 the call, and how to make it."""


def rates(make: Callable[[Any], Scheduler]) -> list[float]:
    """Return the rate of each step."""
    scheduler = make(SGD([Parameter([1.0])], lr=0.1, momentum=0.9))
    seen = []
    for t in range(STEPS):
        seen.append(scheduler.get_last_lr()[0])
        if isinstance(scheduler, schedules.ReduceLROnPlateau):
            scheduler.step(max(1.0, 3.0 - t / 8))
        else:
            scheduler.step()
    return seen


def picture() -> Figure:
    """Return a figure with a panel for each."""
    rows = -(-len(PANELS) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, sharex=True).flat
    for axes, (title, make) in zip(grid, PANELS.items(), strict=True):
        axes.plot(rates(make), drawstyle="steps-post", linewidth=1.2)
        axes.set_title(title, fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=7)
        axes.locator_params(nbins=4)
        axes.grid(axis="y", alpha=0.3)
    return figure


def main(path: Path) -> None:
    """Write the picture, the same bytes each time."""
    with rc_context(SMALL):
        picture().savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).with_name("schedules.svg"))
