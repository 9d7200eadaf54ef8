import json
import subprocess
import sys
import types

import pytest

from benchmarks import __main__ as command
from benchmarks import results
from benchmarks.protocol import Measurement, Report, Unavailable


@pytest.fixture
def question(monkeypatch):
    """Stand in for all questions; what ``run`` raises or returns is up to the test."""
    module = types.SimpleNamespace(NAME="speed", QUESTION="How fast?", SHARE=1, asked=[])
    rows = [
        Measurement("work", "ours", [1e-3, 2e-3], parameters=7, traffic=196),
        Measurement("work", "peer", [2e-3, 4e-3], note="slowly"),
        Measurement("work", "gone", [], missing="pip install gone"),
    ]
    module.run = lambda options: (
        module.asked.append(options) or Report("speed", "cpu", rows, ["so"])
    )
    monkeypatch.setattr(command, "questions", lambda: {"speed": module})
    return module


def test_every_module_that_is_a_question_is_found():
    found = command.questions()
    assert {"step", "host", "memory", "checkpoint", "offload", "torch"} <= set(found)
    assert all(name == module.NAME and callable(module.run) for name, module in found.items())
    assert next(iter(found)) == "step"


def test_a_run_writes_json_and_plot_and_prints_a_table(question, tmp_path, capsys):
    assert command.main(["--device", "cpu", "--minutes", "2", "--results", str(tmp_path)]) == 0
    assert (question.asked[0].device, question.asked[0].seconds) == ("cpu", 120)
    (recorded,), (plot,) = tmp_path.glob("*-speed.json"), tmp_path.glob("*-speed.png")
    assert plot.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "peer 2.00 ×" in printed
    assert "missing: gone (pip install gone) in work" in printed
    assert "work, peer: slowly" in printed
    assert str(recorded) in printed


def test_a_recorded_run_says_what_where_and_with_which_versions(question, tmp_path, capsys):
    command.main(["speed", "--device", "cpu", "--results", str(tmp_path)])
    (path,) = tmp_path.glob("*.json")
    recorded = json.loads(path.read_text())
    assert set(recorded) == {
        "format", "question", "device", "versions", "date", "command", "notes", "measurements",
    }  # fmt: skip
    assert {"kind", "name", "threads", "memory_bytes", "system"} <= set(recorded["device"])
    assert {"python", "numpy"} <= set(recorded["versions"])
    assert recorded["command"].startswith("python -m benchmarks speed --device cpu")
    assert str(tmp_path) not in path.read_text()
    ours, peer, gone = recorded["measurements"]
    assert ours["samples"] == [1e-3, 2e-3]
    assert ours["summary"]["best_peer"] == "peer"
    assert peer["summary"]["ratio"] == 2.0
    assert (gone["samples"], gone["summary"]) == ([], {})


def test_a_recorded_run_can_be_read_back(question, tmp_path, capsys):
    command.main(["--device", "cpu", "--results", str(tmp_path)])
    report, recorded = results.read(next(tmp_path.glob("*.json")))
    assert report == question.run(None)
    assert results.stem(recorded).endswith("-speed")


def test_a_question_that_the_machine_cannot_answer_says_why(question, tmp_path, capsys):
    def run(options):
        raise Unavailable("no GPU")

    question.run = run
    assert command.main(["--device", "cpu", "--results", str(tmp_path)]) == 0
    assert "speed: not on this machine: no GPU" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_what_was_measured_before_a_question_fails_is_recorded(question, tmp_path):
    answer = question.run(None)

    def run(options):
        options.keep(answer)
        raise MemoryError("no more")

    question.run = run
    with pytest.raises(MemoryError):
        command.main(["--device", "cpu", "--results", str(tmp_path)])
    report, _ = results.read(next(tmp_path.glob("*-speed.json")))
    assert report.measurements == answer.measurements
    assert report.notes == ["so", "the run ended before all was measured"]


def test_a_failure_of_ours_is_the_exit_status(question, tmp_path, capsys):
    rows = [Measurement("work", "ours", [], missing="ValueError: broken")]
    question.run = lambda options: Report("speed", "cpu", rows)
    assert command.main(["--device", "cpu", "--results", str(tmp_path)]) == 1


@pytest.mark.parametrize("package", ["rich", "matplotlib"])
def test_a_run_is_recorded_where_nothing_can_show_it(
    question, package, monkeypatch, tmp_path, capsys
):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    assert command.main(["--device", "cpu", "--results", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*-speed.json"))) == 1
    assert "pip install -e '.[bench]'" in capsys.readouterr().out


@pytest.fixture
def children(question, monkeypatch):
    """Stand in for three questions and the processes that ask them."""
    asked = types.SimpleNamespace(commands=[], limits=[], ends={}, seconds=0.0)
    known = {
        name: types.SimpleNamespace(NAME=name, SHARE=share)
        for name, share in (("big", 3), ("small", 2), ("least", 1))
    }
    monkeypatch.setattr(command, "questions", lambda: known)
    monkeypatch.setattr(command.time, "monotonic", lambda: asked.seconds)

    def run(arguments, timeout, check):
        asked.commands.append(arguments[arguments.index("benchmarks") + 1 :])
        asked.limits.append(timeout)
        end = asked.ends.get(asked.commands[-1][0], 0)
        asked.seconds += 60
        if end == "hangs":
            raise subprocess.TimeoutExpired(arguments, timeout)
        return types.SimpleNamespace(returncode=end)

    monkeypatch.setattr(command.subprocess, "run", run)
    return asked


def test_several_questions_are_asked_in_processes_of_their_own(children, tmp_path):
    assert command.main(["--device", "cpu", "--quick", "--results", str(tmp_path)]) == 0
    assert [asked[0] for asked in children.commands] == ["big", "small", "least"]
    assert all(asked[1:3] == ["--device", "cpu"] for asked in children.commands)
    assert all(asked[-3:] == ["--results", str(tmp_path), "--quick"] for asked in children.commands)


def test_what_a_question_leaves_of_its_time_is_the_others(children):
    command.main(["--device", "cpu", "--minutes", "6"])
    minutes = [float(asked[asked.index("--minutes") + 1]) for asked in children.commands]
    assert minutes == pytest.approx([6 * 3 / 6, 5 * 2 / 3, 4], abs=0.01)


@pytest.mark.parametrize("end", [1, -11, "hangs"])
def test_a_question_that_fails_or_hangs_leaves_the_others_to_be_answered(children, end, capsys):
    children.ends["big"] = end
    assert command.main(["--device", "cpu"]) not in (0, None)
    assert [asked[0] for asked in children.commands] == ["big", "small", "least"]
    assert ("big: stopped after" in capsys.readouterr().out) == (end == "hangs")


def test_a_question_is_stopped_soon_after_its_time(children):
    command.main(["--device", "cpu", "--minutes", "6"])
    assert children.limits[0] == 180 + command.PATIENCE


def test_an_unknown_question_is_an_error_that_lists_the_known(question, capsys):
    with pytest.raises(SystemExit):
        command.main(["sped"])
    assert "unknown question 'sped': ask speed" in capsys.readouterr().err


def test_what_pins_much_memory_is_asked_last():
    names = list(command.questions())
    assert names[-1] == "offload"
    assert names.index("kernel") < names.index("offload")
    assert names.index("host") < names.index("offload")
