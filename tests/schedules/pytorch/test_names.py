"""The classes of PyTorch's names: their numbers, arguments and attributes."""

from __future__ import annotations

import inspect

import pytest

from lucid_gpu import schedules
from lucid_gpu.optim import SGD, Adam
from tests.schedules import golden
from tests.schedules.golden import numbers, sgd

MAKERS = {**golden.SCHEDULERS, **golden.OURS_ALONE}
CLOSE = {"rel": 5e-9, "abs": 1e-11}
"""The numbers are written with nine digits."""


def course(scheduler, option, steps=10):
    """Return what an option is for each of the first steps."""
    values = []
    for _ in range(steps):
        values.append(scheduler.optimizer.param_groups[0][option])
        scheduler.step()
    return values


@pytest.mark.parametrize("name", golden.LR)
def test_rates_are_those_that_pytorch_gives(name):
    assert course(MAKERS[name](schedules, sgd()), "lr") == pytest.approx(
        numbers(golden.LR[name]), **CLOSE
    )


@pytest.mark.parametrize("name", golden.MOMENTUM)
def test_momenta_are_those_that_pytorch_gives(name):
    assert course(MAKERS[name](schedules, sgd()), "momentum") == pytest.approx(
        numbers(golden.MOMENTUM[name]), **CLOSE
    )


@pytest.mark.parametrize("name", golden.MOMENTUM)
def test_the_first_beta_is_cycled_where_there_is_no_momentum(name):
    optimizer = Adam(sgd().param_groups[0]["params"], betas=(0.5, 0.999))
    assert [beta1 for beta1, _ in course(MAKERS[name](schedules, optimizer), "betas")] == (
        pytest.approx(numbers(golden.MOMENTUM[name]), **CLOSE)
    )
    assert optimizer.param_groups[0]["betas"][1] == 0.999


@pytest.mark.parametrize("name", MAKERS)
def test_every_scheduler_has_pytorchs_attributes(name):
    optimizer = sgd()
    scheduler = MAKERS[name](schedules, optimizer)
    scheduler.step()
    assert scheduler.last_epoch == 1
    assert scheduler.optimizer is optimizer
    assert scheduler.base_lrs == [0.1]
    assert scheduler.get_last_lr() == [optimizer.param_groups[0]["lr"]]


def facades():
    return [
        value
        for name in schedules.__all__
        if isinstance(value := getattr(schedules, name), type)
        and issubclass(value, schedules.Scheduler)
        and value is not schedules.Scheduler
    ]


@pytest.mark.parametrize("facade", facades(), ids=lambda facade: facade.__name__)
def test_every_class_is_tested_against_numbers(facade):
    tested = {type(make(schedules, sgd())) for make in MAKERS.values()}
    assert facade in tested | {schedules.ReduceLROnPlateau}


@pytest.mark.parametrize("facade", facades(), ids=lambda facade: facade.__name__)
def test_every_class_documents_its_arguments(facade):
    for argument in list(inspect.signature(facade.__init__).parameters)[1:]:
        assert f"{argument}:" in facade.__doc__, argument


def test_a_list_has_one_function_for_each_group():
    scheduler = schedules.LambdaLR(sgd(groups=2), [golden.halving, golden.decaying])
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05, 0.05 * 0.95]


def test_a_list_of_another_length_than_the_groups_is_refused():
    with pytest.raises(ValueError, match="lr has 1 schedules for 2 parameter groups"):
        schedules.LambdaLR(sgd(groups=2), [golden.halving])


def test_an_annealing_has_an_end_for_each_group():
    scheduler = schedules.SWALR(sgd(groups=2), [0.02, 0.01], 1)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.02, 0.01]


def test_a_polynomial_ends_at_a_minimum_if_told_to():
    scheduler = schedules.PolynomialLR(sgd(), 4, eta_min=0.02)
    scheduler.step(4)
    assert scheduler.get_last_lr() == [0.02]


def test_pytorchs_last_epoch_continues_after_that_epoch():
    optimizer = sgd()
    first = schedules.ExponentialLR(optimizer, 0.5)
    for _ in range(5):
        first.step()
    resumed = schedules.ExponentialLR(optimizer, 0.5, last_epoch=4)
    assert (resumed.last_epoch, resumed.get_last_lr()) == (5, [0.1 * 0.5**5])


def test_pytorchs_last_epoch_needs_a_base():
    optimizer = sgd()
    with pytest.raises(KeyError, match="'initial_lr' is missing in parameter group 0"):
        schedules.ExponentialLR(optimizer, 0.5, last_epoch=4)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_wave_has_ends_for_each_group():
    scheduler = schedules.CyclicLR(
        sgd(groups=2), [0.01, 0.02], 0.1, 2, base_momentum=[0.8, 0.7], max_momentum=[0.9, 0.95]
    )
    assert scheduler.get_last_lr() == [0.01, 0.02]
    scheduler.step(2)
    assert scheduler.get_last_lr() == [0.1, 0.1]
    assert [g["momentum"] for g in scheduler.optimizer.param_groups] == pytest.approx([0.8, 0.7])


def test_one_cycle_has_a_peak_for_each_group():
    scheduler = schedules.OneCycleLR(sgd(groups=2), [0.1, 0.2], 10)
    scheduler.step(2)
    assert scheduler.get_last_lr() == pytest.approx([0.1, 0.2])


def test_one_cycle_counts_epochs_by_their_steps():
    by_epochs = schedules.OneCycleLR(sgd(), 0.1, epochs=2, steps_per_epoch=5)
    assert course(by_epochs, "lr") == course(schedules.OneCycleLR(sgd(), 0.1, 10), "lr")


@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_one_cycle_does_not_go_negative_after_its_end(strategy):
    scheduler = schedules.OneCycleLR(sgd(), 0.1, 10, anneal_strategy=strategy)
    rates = course(scheduler, "lr", 15)
    assert rates[9:] == [rates[9]] * 6
    assert rates[9] > 0


def test_without_its_momentum_a_wave_leaves_that_alone():
    optimizer = sgd(momentum=0.0)
    schedules.CyclicLR(optimizer, 0.01, 0.1, cycle_momentum=False).step()
    assert optimizer.param_groups[0]["momentum"] == 0


WITHOUT_MOMENTUM = [
    lambda optimizer: schedules.CyclicLR(optimizer, 0.01, 0.1),
    lambda optimizer: schedules.OneCycleLR(optimizer, 0.1, 10),
]


@pytest.mark.parametrize("make", WITHOUT_MOMENTUM)
def test_momentum_that_is_not_there_is_not_cycled(make):
    optimizer = SGD(sgd().param_groups[0]["params"], lr=0.1)
    with pytest.raises(ValueError, match=r"group 0 has no momentum .* cycle_momentum=False"):
        make(optimizer)
    assert "initial_lr" not in optimizer.param_groups[0]


NAN = float("nan")
BAD = [
    ("LambdaLR", (3,), {}, TypeError, "lr_lambda must be a function, not 3"),
    ("MultiplicativeLR", (3,), {}, TypeError, "lr_lambda must be a function, not 3"),
    ("StepLR", (0,), {}, ValueError, "step_size must be >= 1, not 0"),
    ("StepLR", (1, NAN), {}, ValueError, "gamma must be finite, not nan"),
    ("MultiStepLR", ([-1],), {}, ValueError, r"milestones\[0\] must be >= 0, not -1"),
    ("ConstantLR", (1.5,), {}, ValueError, "factor must be <= 1, not 1.5"),
    ("ConstantLR", (-0.5,), {}, ValueError, "factor must be >= 0, not -0.5"),
    ("LinearLR", (0,), {}, ValueError, "start_factor must be > 0, not 0"),
    ("LinearLR", (1.5,), {}, ValueError, "start_factor must be <= 1, not 1.5"),
    ("LinearLR", (0.5, 1.5), {}, ValueError, "end_factor must be <= 1, not 1.5"),
    ("LinearLR", (0.5, -0.5), {}, ValueError, "end_factor must be >= 0, not -0.5"),
    ("ExponentialLR", (-1,), {}, ValueError, "gamma must be >= 0, not -1"),
    ("PolynomialLR", (0,), {}, ValueError, "total_iters must be > 0, not 0"),
    ("CosineAnnealingLR", (0,), {}, ValueError, "T_max must be > 0, not 0"),
    ("CosineAnnealingWarmRestarts", (0,), {}, ValueError, "T_0 must be >= 1, not 0"),
    ("CosineAnnealingWarmRestarts", (2, 0), {}, ValueError, "T_mult must be >= 1, not 0"),
    ("CosineAnnealingWarmRestarts", (2, 1.5), {}, TypeError, "T_mult must be a whole number"),
    ("CyclicLR", (0.01, NAN), {}, ValueError, "max_lr must be finite, not nan"),
    ("CyclicLR", ("a", 0.1), {}, TypeError, "base_lr must be a number, not 'a'"),
    ("CyclicLR", (0.01, 0.1, 0), {}, ValueError, "step_size_up must be > 0, not 0"),
    ("CyclicLR", (0.01, 0.1, 5, 5, "sine"), {}, ValueError, "mode must be one of"),
    ("CyclicLR", ([0.1, 0.2], [0.1]), {}, ValueError, "base_lr and max_lr must be lists of the"),
    ("CyclicLR", (0.1, 0.2), {"cycle_momentum": 1}, ValueError, "cycle_momentum must be one of"),
    ("OneCycleLR", (0.1,), {}, ValueError, "total_steps is missing"),
    ("OneCycleLR", (0.1,), {"epochs": 3}, ValueError, "total_steps is missing"),
    ("OneCycleLR", (0.1, 0), {}, ValueError, "total_steps must be >= 1, not 0"),
    ("OneCycleLR", (0.1, None, 0, 5), {}, ValueError, "epochs must be >= 1, not 0"),
    ("OneCycleLR", (0.1, None, 5, 0), {}, ValueError, "steps_per_epoch must be >= 1, not 0"),
    ("OneCycleLR", (0.1, 9), {"pct_start": 1}, TypeError, "pct_start must be a float"),
    ("OneCycleLR", (0.1, 9), {"pct_start": 1.5}, ValueError, "pct_start must be <= 1, not 1.5"),
    ("OneCycleLR", (0.1, 9), {"anneal_strategy": "x"}, ValueError, "anneal_strategy must be one"),
    ("OneCycleLR", (0.1, 9), {"div_factor": 0}, ValueError, "div_factor must be > 0, not 0"),
    ("OneCycleLR", (0.1, 9), {"final_div_factor": -1}, ValueError, "final_div_factor must be > 0"),
    ("OneCycleLR", (-0.1, 9), {}, ValueError, "max_lr must be >= 0, not -0.1"),
    ("OneCycleLR", (0.1, 9), {"base_momentum": -1}, ValueError, "base_momentum must be >= 0"),
    ("CyclicLR", (-0.1, 0.1), {}, ValueError, "base_lr must be >= 0, not -0.1"),
    ("CyclicLR", (0.1, -0.1), {}, ValueError, "max_lr must be >= 0, not -0.1"),
    ("CyclicLR", (0, 1), {"base_momentum": -1}, ValueError, "base_momentum must be >= 0, not -1"),
    ("OneCycleLR", (0.1, 9), {"max_momentum": 1e400}, ValueError, "max_momentum must be finite"),
    ("SWALR", (NAN,), {}, ValueError, "swa_lr must be finite, not nan"),
    ("SWALR", (-0.1, 0), {}, ValueError, "lr must be >= 0, not -0.1"),
    ("SWALR", (0.1, -1), {}, ValueError, "anneal_epochs must be >= 0, not -1"),
    ("SWALR", (0.1, 1, "x"), {}, ValueError, "anneal_strategy must be one of"),
    ("NoamScheduler", (0, 4), {}, ValueError, "d_model must be > 0, not 0"),
    ("NoamScheduler", (512, 0), {}, ValueError, "warmup_steps must be > 0, not 0"),
    ("ReduceLROnPlateau", ("up",), {}, ValueError, "mode must be one of 'min', 'max', not 'up'"),
    ("ReduceLROnPlateau", (), {"factor": 1.0}, ValueError, "factor must be < 1, not 1.0"),
    ("ReduceLROnPlateau", (), {"factor": -0.1}, ValueError, "factor must be >= 0, not -0.1"),
    ("ReduceLROnPlateau", (), {"patience": -1}, ValueError, "patience must be >= 0, not -1"),
    ("ReduceLROnPlateau", (), {"patience": 1.5}, TypeError, "patience must be a whole number"),
    ("ReduceLROnPlateau", (), {"threshold": -1}, ValueError, "threshold must be >= 0, not -1"),
    ("ReduceLROnPlateau", (), {"threshold_mode": "x"}, ValueError, "threshold_mode must be one of"),
    ("ReduceLROnPlateau", (), {"cooldown": -1}, ValueError, "cooldown must be >= 0, not -1"),
    ("ReduceLROnPlateau", (), {"min_lr": -1}, ValueError, "min_lr must be >= 0, not -1"),
    ("ReduceLROnPlateau", (), {"min_lr": [0, 0]}, ValueError, "min_lr has 2 rates for 1"),
    ("ReduceLROnPlateau", (), {"eps": -1}, ValueError, "eps must be >= 0, not -1"),
    ("StepLR", (3,), {"last_epoch": -2}, ValueError, "last_epoch must be >= -1, not -2"),
    ("StepLR", (3,), {"last_epoch": 0.5}, TypeError, "last_epoch must be a whole number"),
    (
        "StepLR",
        (3,),
        {"every": "epoch"},
        ValueError,
        "every must be one of None, 'step', 'update', not",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "options", "error", "message"), BAD)
def test_an_argument_out_of_bounds_is_named_and_nothing_is_changed(
    name, arguments, options, error, message
):
    optimizer = sgd()
    before = dict(optimizer.param_groups[0])
    with pytest.raises(error, match=message):
        getattr(schedules, name)(optimizer, *arguments, **options)
    assert optimizer.param_groups[0] == before
