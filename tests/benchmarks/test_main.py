import json
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
    assert {"step", "host", "memory", "checkpoint", "offload"} <= set(found)
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


def test_a_question_that_fails_does_not_keep_the_others_from_being_answered(
    question, monkeypatch, tmp_path, capsys
):
    def run(options):
        raise MemoryError("no more")

    broken = types.SimpleNamespace(NAME="broken", QUESTION="?", SHARE=1, run=run)
    monkeypatch.setattr(command, "questions", lambda: {"broken": broken, "speed": question})
    assert command.main(["--device", "cpu", "--results", str(tmp_path)]) == 1
    assert "MemoryError: no more" in capsys.readouterr().err
    assert len(list(tmp_path.glob("*-speed.json"))) == 1


def test_an_unknown_question_is_an_error_that_lists_the_known(question, capsys):
    with pytest.raises(SystemExit):
        command.main(["sped"])
    assert "unknown question 'sped': ask speed" in capsys.readouterr().err
