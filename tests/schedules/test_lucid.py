"""The dialect of Lucid 1.20.0, whose schedulers run one step ahead."""

from __future__ import annotations

import inspect
import math

import pytest

from lucid_gpu.schedules import lucid
from tests.schedules.golden import halving, sgd

AHEAD = {
    "LambdaLR": (lambda o: lucid.LambdaLR(halving, o), lambda t: 0.1 * 0.5**t),
    "StepLR": (lambda o: lucid.StepLR(o, 3, 0.5), lambda t: 0.1 * 0.5 ** (t // 3)),
    "MultiStepLR": (
        lambda o: lucid.MultiStepLR(o, [2, 4], 0.5),
        lambda t: 0.1 * 0.5 ** ((t >= 2) + (t >= 4)),
    ),
    "ExponentialLR": (lambda o: lucid.ExponentialLR(o, 0.5), lambda t: 0.1 * 0.5**t),
    "CosineAnnealingLR": (
        lambda o: lucid.CosineAnnealingLR(o, 6, 0.01),
        lambda t: 0.01 + 0.09 * (1 + math.cos(math.pi * t / 6)) / 2,
    ),
}


@pytest.mark.parametrize("name", AHEAD)
def test_the_first_rate_is_that_after_one_step(name):
    make, formula = AHEAD[name]
    scheduler = make(sgd())
    for t in range(1, 9):
        assert scheduler.last_epoch == t
        assert scheduler.last_lr == pytest.approx([formula(t)], rel=1e-14)
        scheduler.step()


@pytest.mark.parametrize("name", AHEAD)
def test_a_state_dict_of_lucid_continues_where_it_stood(name):
    make, formula = AHEAD[name]
    scheduler = make(sgd())
    scheduler.load_state_dict(
        {"last_epoch": 4, "base_lrs": [0.1], "_step_count": 4, "_last_lr": [9.0]}
    )
    assert scheduler.last_lr == pytest.approx([formula(4)], rel=1e-14)
    scheduler.step()
    assert scheduler.last_lr == pytest.approx([formula(5)], rel=1e-14)


@pytest.mark.parametrize("name", AHEAD)
def test_last_epoch_and_verbose_are_arguments(name):
    arguments = list(inspect.signature(getattr(lucid, name)).parameters)
    assert arguments[-2:] == ["last_epoch", "verbose"]


def test_every_rate_is_printed_if_asked_for(capsys):
    scheduler = lucid.ExponentialLR(sgd(), 0.5, verbose=True)
    scheduler.step()
    assert capsys.readouterr().out == (
        "step 1: learning rates 0.05\nstep 2: learning rates 0.025\n"
    )
    lucid.ExponentialLR(sgd(), 0.5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("milestones", [[], [3, 1]])
def test_milestones_must_rise(milestones):
    with pytest.raises(ValueError, match="milestones must be at least one, and rise, not"):
        lucid.MultiStepLR(sgd(), milestones)
