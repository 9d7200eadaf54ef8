import itertools

import pytest

from benchmarks import contest, peers
from benchmarks.contest import Contest
from benchmarks.protocol import Options, Unavailable
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


def test_a_peer_that_fails_later_is_missing_and_the_others_are_measured():
    def samplers(name, contender):
        counter = itertools.count()

        def later():
            if name != "ours" and next(counter) == 2:
                raise MemoryError("too large by now")
            return 1.0

        return {"wall": later, "host": lambda: 0.5}

    task = Contest("label", WORK, ADAM, ["ours", "array expressions"])
    measurements = contest.hold(task, QUICK, 0.1, samplers)
    assert [(m.contender, m.samples, m.missing) for m in measurements] == [
        ("array expressions", [], "MemoryError: too large by now"),
        ("ours", [1.0, 1.0], ""),
        ("ours", [0.5, 0.5], ""),
    ]


def test_a_failure_of_ours_is_none_to_report_but_to_mend(monkeypatch):
    monkeypatch.setitem(peers.BUILDERS, "ours", raising(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        hold("ours")


def test_a_skipped_contender_is_not_built(monkeypatch):
    monkeypatch.setitem(peers.BUILDERS, "torch fused", raising(AssertionError))
    found = hold("ours", "torch fused", skipped={"torch fused": "too large"})
    assert found["torch fused"].missing == "too large"


def test_seconds_are_divided_among_contests(monkeypatch):
    given = []
    monkeypatch.setattr(
        contest, "hold", lambda own, options, seconds, _: given.append(seconds) or []
    )
    contest.hold_all([None] * 4, Options("cpu", False, 8.0), wall)
    assert given == pytest.approx([2.0, 8 / 3, 4.0, 8.0], rel=0.01)
