from __future__ import annotations

import math

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.schedules import ReduceLROnPlateau, Step, warmup_cosine
from tests.schedules.golden import PLATEAU, sgd


@pytest.mark.parametrize("name", PLATEAU)
def test_rates_and_counters_are_those_that_pytorch_gives(name):
    options, metrics, rates, bad, cooldown = PLATEAU[name]
    scheduler = ReduceLROnPlateau(sgd(), **options)
    seen = []
    for metric in metrics:
        scheduler.step(metric)
        seen.append((scheduler.num_bad_epochs, scheduler.cooldown_counter))
        rates_so_far = scheduler.get_last_lr()
        assert rates_so_far == pytest.approx([rates[len(seen) - 1]], rel=1e-14)
    assert seen == list(zip(bad, cooldown, strict=True))


def after(metrics, **options):
    scheduler = ReduceLROnPlateau(sgd(), **{"patience": 0, "factor": 0.5, **options})
    for metric in metrics:
        scheduler.step(metric)
    return scheduler


def test_a_greater_metric_is_better_with_max():
    scheduler = after([1, 2, 1.5], mode="max")
    assert (scheduler.best, scheduler.get_last_lr()) == (2, [0.05])


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
@pytest.mark.parametrize("best", [-10.0, 10.0])
def test_the_relative_margin_is_a_share_of_the_absolute_best(mode, sign, best):
    scheduler = after([best, best - sign * 0.9], mode=mode, threshold=0.1)
    assert scheduler.best == best
    scheduler.step(best - sign * 1.1)
    assert scheduler.best == best - sign * 1.1


@pytest.mark.parametrize(("mode", "sign"), [("min", 1), ("max", -1)])
def test_the_absolute_margin_is_a_difference(mode, sign):
    scheduler = after([-10, -10 - sign * 0.9], mode=mode, threshold=1, threshold_mode="abs")
    assert scheduler.best == -10
    scheduler.step(-10 - sign * 1.1)
    assert scheduler.best == -10 - sign * 1.1


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold", [0, 1.0, 5.0])
def test_the_first_finite_metric_is_better_than_none(mode, threshold):
    assert after([3], mode=mode, threshold=threshold).best == 3


def test_the_rate_stops_at_its_minimum():
    assert after([1] * 9, min_lr=0.03).get_last_lr() == pytest.approx([0.03], rel=1e-15)


def test_a_list_has_a_minimum_for_each_group():
    scheduler = ReduceLROnPlateau(sgd(groups=2), patience=0, factor=0.5, min_lr=[0.06, 0.01])
    for _ in range(3):
        scheduler.step(1)
    assert scheduler.get_last_lr() == pytest.approx([0.06, 0.0125])


def test_a_rate_that_would_fall_by_no_more_than_eps_stays():
    assert after([1] * 4, eps=0.06).get_last_lr() == [0.1]


def test_a_scale_stands_beside_any_schedule():
    scheduler = after([1, 1], lr=warmup_cosine(4, 12))
    expected = warmup_cosine(4, 12)
    assert scheduler.get_last_lr() == [expected(2, 0.1) * 0.5]
    scheduler.step(0.5)
    assert scheduler.get_last_lr() == [expected(3, 0.1) * 0.5]


def test_a_group_that_is_added_later_has_a_scale_of_its_own():
    scheduler = after([1, 1])
    scheduler.optimizer.add_param_group({"params": [Parameter([1.0])], "lr": 0.4})
    scheduler.step(0.5)
    assert scheduler.get_last_lr() == [0.05, 0.4]
    scheduler.step(0.5)
    assert scheduler.get_last_lr() == [0.025, 0.2]


def test_a_metric_may_be_any_number():
    scheduler = after([np.float32(2), np.array(1.5), 1, math.inf, -math.inf])
    assert scheduler.best == -math.inf


@pytest.mark.parametrize("metric", [None, "1", [1], True, 1j])
def test_a_metric_that_is_no_number_is_refused(metric):
    scheduler = after([1])
    before = scheduler.state_dict()
    with pytest.raises(TypeError, match="a metric must be a number, not"):
        scheduler.step(metric)
    assert scheduler.state_dict() == before


def test_a_metric_that_no_float_can_hold_is_refused():
    with pytest.raises(ValueError, match="that a float can hold"):
        after([10**400])


def test_a_step_that_is_refused_changes_nothing():
    rates = {0: 1.0, 1: 1.0, 2: -1.0}
    scheduler = after([1], lr=lambda t, base: rates[t])
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=r"at t = 2 .* lr must be >= 0"):
        scheduler.step(1)
    assert scheduler.state_dict() == before
    assert scheduler.get_last_lr() == [1.0]


def test_a_resumed_scheduler_goes_on_as_the_one_it_was_saved_from():
    metrics = [3, 2, 2, 2, 2, 1, 1, 1, 1, 1]
    options = {"patience": 1, "cooldown": 1, "factor": 0.5, "lr": Step(4, 0.5)}
    whole = ReduceLROnPlateau(sgd(), **options)
    for turn, metric in enumerate(metrics):
        if turn == 4:
            saved = whole.state_dict()
            resumed = ReduceLROnPlateau(sgd(), **options)
            resumed.load_state_dict(saved)
            assert resumed.get_last_lr() == whole.get_last_lr()
        whole.step(metric)
        if turn >= 4:
            resumed.step(metric)
            assert resumed.get_last_lr() == whole.get_last_lr()
    assert resumed.state_dict() == whole.state_dict()
    assert whole.scales != [1.0]


def test_a_state_dict_of_pytorch_gives_its_rates():
    scheduler = ReduceLROnPlateau(sgd(), patience=3, lr=Step(2, 0.5))
    theirs = {"best": 0.5, "num_bad_epochs": 1, "cooldown_counter": 2, "patience": 3}
    theirs |= {"last_epoch": 2, "_last_lr": [0.025]}
    scheduler.load_state_dict(theirs)
    assert scheduler.scales == [0.5]
    assert scheduler.get_last_lr() == [0.025]
    assert (scheduler.best, scheduler.num_bad_epochs, scheduler.cooldown_counter) == (0.5, 1, 2)


MEMORY = {"best": 1.0, "num_bad_epochs": 0, "cooldown_counter": 0}
WHOLE = {"last_epoch": 2, "scales": [0.5], **MEMORY}
BAD = [
    ({"best": None}, TypeError, "a metric must be a number"),
    ({"num_bad_epochs": -1}, ValueError, "num_bad_epochs must be >= 0"),
    ({"cooldown_counter": 0.5}, TypeError, "cooldown_counter must be a whole number"),
    ({"scales": [-1]}, ValueError, r"scales\[0\] must be >= 0"),
    ({"scales": 3}, TypeError, "scales must be a list of numbers"),
    ({"last_epoch": -1}, ValueError, "last_epoch must be >= 0"),
]


@pytest.mark.parametrize(("edits", "error", "message"), BAD)
def test_a_state_dict_that_is_wrong_changes_nothing(edits, error, message):
    scheduler = after([2, 2])
    before = scheduler.state_dict(), scheduler.get_last_lr()
    with pytest.raises(error, match=message):
        scheduler.load_state_dict({**WHOLE, **edits})
    assert (scheduler.state_dict(), scheduler.get_last_lr()) == before


def test_the_state_of_another_kind_of_scheduler_is_refused():
    with pytest.raises(KeyError, match="no 'best': it is of another kind"):
        after([2]).load_state_dict({"last_epoch": 3})
