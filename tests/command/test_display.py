from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_gpu.command import display

HISTORY = [
    {"loss": 1.0, "train": 0.5, "test": 0.6},
    {"loss": 0.1, "train": 0.9, "test": 0.8},
]

CODE = """
from lucid_gpu.command.display import progress
with progress(0, 4, "nothing yet") as show:
    for step in range(1, 5):
        show(step, f"half {step // 2} of 2")
"""


def test_every_new_line_is_printed_once_where_there_is_no_terminal(capsys) -> None:
    with display.progress(0, 4, "nothing yet") as show:
        for step in range(1, 5):
            show(step, "nothing yet" if step < 2 else f"half {step // 2} of 2")
    assert capsys.readouterr().out == "half 1 of 2\nhalf 2 of 2\n"


def test_forced_colours_bring_no_control_characters_into_a_pipe() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "half 0 of 2\nhalf 1 of 2\nhalf 2 of 2\n"


def on_terminal(kind: str, width: int = 100) -> str:
    """Return what the progress of CODE writes to a terminal."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": kind, "COLUMNS": str(width)}
    command = [sys.executable, "-c", CODE]
    subprocess.run(command, stdin=theirs, stdout=theirs, stderr=theirs, check=True, env=environment)
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 4096):
            text += chunk
    except OSError:  # how Linux says that the other end was closed
        pass
    os.close(ours)
    return text.decode()


def test_a_terminal_shows_a_bar_that_stays() -> None:
    text = on_terminal("xterm")
    assert "━" * 24 in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "half 2 of 2" in text


@pytest.mark.parametrize("width", [30, 69])
def test_a_narrow_terminal_gets_lines(width: int) -> None:
    text = on_terminal("xterm", width)
    assert text == "half 0 of 2\r\nhalf 1 of 2\r\nhalf 2 of 2\r\n"


def test_what_is_shown_beside_a_bar_is_whole(monkeypatch) -> None:
    """The longest line of the demo, on the narrowest terminal that gets a bar."""
    line = "epoch 30/30  loss 0.0123  train 100.0%  test 97.5%"
    monkeypatch.setitem(globals(), "CODE", CODE.replace('f"half {step // 2} of 2"', repr(line)))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", on_terminal("xterm", display.BAR_COLUMNS))
    last = text.split("\r")[-2]
    assert re.search(rf"━ {line} \d:\d\d:\d\d", last)


def test_a_dumb_terminal_gets_lines() -> None:
    assert on_terminal("dumb") == "half 0 of 2\r\nhalf 1 of 2\r\nhalf 2 of 2\r\n"


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_the_curves_are_an_image_of_the_kind_asked_for(tmp_path, suffix, magic) -> None:
    path = tmp_path / f"curves.{suffix}"
    display.check_plot(path)
    display.plot(HISTORY, path)
    assert path.read_bytes().startswith(magic)


def test_the_curves_show_every_epoch(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    figure = display.curves(HISTORY)
    loss, accuracy = figure.axes
    assert [list(line.get_xydata().ravel()) for line in loss.lines] == [[1, 1.0, 2, 0.1]]
    assert {line.get_label(): list(line.get_ydata()) for line in accuracy.lines} == {
        "train": [50, 90],
        "test": [60, 80],
    }
    display.plot(HISTORY, path)
    assert "Training loss" in path.read_text()


@pytest.mark.parametrize("name", ["absent/curves.png", "curves.txt", "curves", "."])
def test_a_plot_that_cannot_be_drawn_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(display.DemoError, match="--plot"):
        display.check_plot(tmp_path / name)


def test_all_absent_packages_are_named(monkeypatch) -> None:
    display.check_packages()
    for name in ("one", "two"):
        monkeypatch.setitem(display.PACKAGES, f"absent_{name}", f"absent-{name}")
    assert display.absent_packages() == ["absent-one", "absent-two"]
    with pytest.raises(display.DemoError, match=r"absent-one, absent-two: .*pip install"):
        display.check_packages()
