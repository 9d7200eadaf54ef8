"""What the demo shows: its progress, and its curves. The packages for that come with ``[demo]``."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class DemoError(Exception):
    """The demo cannot do what it was asked for; the text says why, and the remedy."""


PACKAGES = {"sklearn": "scikit-learn", "rich": "rich", "matplotlib": "matplotlib"}
"""What the extra ``demo`` installs: the name to import, and the name of the package."""

INSTALL = "in a clone of lucid_gpu, pip install '.[demo]'"
"""What to do where one of them is missing."""


def absent_packages() -> list[str]:
    """Return those packages of the demo that are not installed."""
    return [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]


def check_packages() -> None:
    """Raise DemoError if a package of the demo is not installed."""
    absent = absent_packages()
    if absent:
        raise DemoError(f"the demo needs {', '.join(absent)}: {INSTALL}")


BAR_COLUMNS = 70
"""How wide a terminal must be to show bar, figures and remaining time side by side."""


@contextlib.contextmanager
def progress(start: int, total: int, line: str) -> Iterator[Callable[[int, str], None]]:
    """Yield ``show(step, line)``: a bar on a terminal, elsewhere, or on a narrow one, new lines.

    Args:
        start: the steps that are done.
        total: all steps.
        line: what there is to say at the start.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    console = Console(force_terminal=sys.stdout.isatty(), highlight=False)
    columns = (BarColumn(24), "{task.description}", TimeRemainingColumn())
    has_bar = console.is_interactive and console.width >= BAR_COLUMNS
    with Progress(*columns, console=console, disable=not has_bar) as bar:
        task = bar.add_task(line, total=total, completed=start)
        shown = line

        def show(step: int, line: str) -> None:
            nonlocal shown
            bar.update(task, completed=step, description=line)
            if line != shown and not has_bar:
                console.print(line, soft_wrap=True)
            shown = line

        yield show


def plot(history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the curves into an image file; its suffix says in which format."""
    curves(history).savefig(path)


def curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Return a figure of loss and accuracy over the epochs.

    Args:
        history: of each epoch, ``loss``, and ``train`` and ``test`` accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = range(1, len(history) + 1)
    loss.semilogy(epochs, [entry["loss"] for entry in history], ".-")
    loss.set(xlabel="epoch", ylabel="cross-entropy", title="Training loss")
    for name in ("train", "test"):
        accuracy.plot(epochs, [100 * entry[name] for entry in history], ".-", label=name)
    accuracy.set(xlabel="epoch", ylabel="accuracy in %", title="Accuracy")
    accuracy.legend()
    for axes in (loss, accuracy):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def check_plot(path: Path) -> None:
    """Raise DemoError if no plot can be drawn into ``path``, so that nobody trains in vain."""
    from matplotlib.figure import Figure

    if not path.parent.is_dir():
        raise DemoError(f"--plot {path}: the folder {path.parent} does not exist")
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in kinds or path.is_dir():
        raise DemoError(f"--plot {path}: name an image file, such as curves.png")
