import itertools
import weakref

import pytest

from benchmarks import contest, peers
from benchmarks.contest import Contest
from benchmarks.protocol import Measurement, Options, Report, Unavailable
from benchmarks.workloads import ADAM, Workload

QUICK = Options("cpu", quick=True, seconds=0.1)
WORK = Workload("work", ((2, 3), (4,)), note="a note")


def hold(*names, **options):
    measurements = contest.hold(Contest("label", WORK, ADAM, names, **options), QUICK, 0.1, wall)
    return {m.contender: m for m in measurements}


def wall(name, contender):
    counter = itertools.count(1)
    return {"wall": lambda: float(next(counter)), "host": lambda: 0.5}


def raising(error):
    def build(task):
        raise error

    return build


def test_each_metric_of_each_contender_is_measured():
    task = Contest("label", WORK, ADAM, ["ours", "array expressions"])
    measurements = contest.hold(task, QUICK, 0.1, wall)
    assert [(m.contender, m.metric, m.samples) for m in measurements] == [
        ("ours", "wall", [2.0, 3.0]),
        ("ours", "host", [0.5, 0.5]),
        ("array expressions", "wall", [2.0, 3.0]),
        ("array expressions", "host", [0.5, 0.5]),
    ]
    assert {(m.workload, m.parameters, m.traffic, m.note) for m in measurements} == {
        ("label", 10, 280, "a note")
    }


def test_a_peer_that_is_not_installed_is_missing_with_its_reason(monkeypatch):
    monkeypatch.setitem(peers.BUILDERS, "torch fused", raising(Unavailable("pip install torch")))
    torch = hold("ours", "torch fused")["torch fused"]
    assert (torch.samples, torch.missing) == ([], "pip install torch")


def test_a_peer_that_fails_is_missing_with_its_error(monkeypatch):
    error = MemoryError("too large\nand more")
    monkeypatch.setitem(peers.BUILDERS, "torch fused", raising(error))
    assert hold("ours", "torch fused")["torch fused"].missing == "MemoryError: too large"


def test_a_peer_that_fails_later_keeps_its_samples_and_the_others_go_on():
    def samplers(name, contender):
        counter = itertools.count()

        def later():
            if name != "ours" and next(counter) == 2:
                raise MemoryError("too large by now")
            return 1.0

        return {"wall": later, "host": lambda: 0.5}

    task = Contest("label", WORK, ADAM, ["ours", "array expressions"])
    measurements = contest.hold(task, QUICK, 0.1, samplers)
    assert [(m.contender, m.samples, m.note) for m in measurements] == [
        ("ours", [1.0, 1.0], "a note"),
        ("ours", [0.5, 0.5], "a note"),
        ("array expressions", [1.0], "1 samples, then MemoryError: too large by now"),
        ("array expressions", [0.5, 0.5], "a note"),
    ]


def test_a_peer_that_fails_at_its_first_sample_is_missing():
    def fail():
        raise ZeroDivisionError("unforeseen")

    task = Contest("label", WORK, ADAM, ["array expressions"])
    (row,) = contest.hold(task, QUICK, 0.1, lambda name, contender: {"wall": fail})
    assert (row.samples, row.missing) == ([], "ZeroDivisionError: unforeseen")


def test_where_an_error_was_raised_is_printed(monkeypatch, capsys):
    monkeypatch.setitem(peers.BUILDERS, "torch fused", raising(OSError("no libcudart")))
    hold("torch fused")
    assert "in build" in capsys.readouterr().err


def test_a_failure_of_ours_is_reported_beside_what_peers_took(monkeypatch):
    monkeypatch.setitem(peers.BUILDERS, "ours", raising(ValueError("broken")))
    found = hold("ours", "array expressions")
    assert found["ours"].missing == "ValueError: broken"
    assert found["array expressions"].samples


def test_all_are_missing_where_there_is_no_memory_for_the_arrays(monkeypatch):
    def no_memory(*arguments):
        raise MemoryError("too large")

    monkeypatch.setattr(contest, "Task", no_memory)
    found = hold("ours", "array expressions")
    assert {m.missing for m in found.values()} == {"MemoryError: too large"}
    assert set(found) == {"ours", "array expressions"}


def test_nothing_of_a_contest_is_alive_when_memory_is_released(monkeypatch):
    tasks = []

    def samplers(name, contender):
        tasks.append(weakref.ref(contender.task))
        return {"wall": lambda: contender.step() or 1.0}

    alive = []
    monkeypatch.setattr(contest, "release", lambda home: alive.append(tasks[-1]()))
    contest.hold(Contest("label", WORK, ADAM, ["array expressions"]), QUICK, 0.1, samplers)
    assert alive == [None]


def test_a_skipped_contender_is_not_built(monkeypatch):
    monkeypatch.setitem(peers.BUILDERS, "torch fused", raising(AssertionError))
    found = hold("ours", "torch fused", skipped={"torch fused": "too large"})
    assert found["torch fused"].missing == "too large"


def test_seconds_are_divided_among_contests(monkeypatch):
    given = []
    monkeypatch.setattr(
        contest, "hold", lambda own, options, seconds, _: given.append(seconds) or []
    )
    contest.hold_all([None] * 4, Options("cpu", False, 8.0), wall, Report("", "cpu", []))
    assert given == pytest.approx([2.0, 8 / 3, 4.0, 8.0], rel=0.01)


def test_the_report_is_kept_after_each_contest(monkeypatch):
    monkeypatch.setattr(contest, "hold", lambda *_: [Measurement("", "ours", [1.0])])
    kept = []
    options = Options("cpu", False, 8.0, keep=lambda report: kept.append(len(report.measurements)))
    contest.hold_all([None] * 3, options, wall, Report("", "cpu", []))
    assert kept == [1, 2, 3]
