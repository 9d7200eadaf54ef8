from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu import schedules
from tests.schedules.golden import alternating, halving

SAMPLES = [
    schedules.Lambda(halving),
    schedules.Multiplicative(alternating),
    schedules.Step(3),
    schedules.MultiStep([2, 5]),
    schedules.Constant(),
    schedules.Linear(),
    schedules.Exponential(0.9),
    schedules.Polynomial(),
    schedules.Cosine(7),
    schedules.CosineRestarts(2, 2),
    schedules.Cyclic(0.01, 0.1, 3),
    schedules.OneCycle(0.01, 0.1, 0.0, 9),
    schedules.Anneal(0.05),
    schedules.noam(512, 4),
    schedules.chain(schedules.Constant(), schedules.Exponential(0.9)),
    schedules.sequence([schedules.Constant(), schedules.Exponential(0.9)], [3]),
    schedules.hold(schedules.Cosine(7), 7),
    schedules.warmup_cosine(2, 9),
    schedules.warmup_linear(2, 9),
    schedules.wsd(2, 3, 4),
]


def name(schedule):
    return type(schedule).__name__


@pytest.mark.parametrize("schedule", SAMPLES, ids=name)
def test_a_schedule_is_pure(schedule):
    forwards = [schedule(t, 0.1) for t in range(12)]
    backwards = [schedule(t, 0.1) for t in reversed(range(12))]
    assert forwards == backwards[::-1]


@pytest.mark.parametrize("schedule", SAMPLES, ids=name)
def test_a_schedule_can_be_pickled_and_compared(schedule):
    schedule(3, 0.1)
    twin = pickle.loads(pickle.dumps(schedule))
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert twin(7, 0.1) == schedule(7, 0.1)


@pytest.mark.parametrize("schedule", SAMPLES, ids=name)
def test_a_schedule_cannot_be_changed(schedule):
    field = next(iter(vars(schedule)))
    with pytest.raises(AttributeError):
        setattr(schedule, field, 1)


@pytest.mark.parametrize("schedule", SAMPLES, ids=name)
def test_the_repr_of_a_schedule_names_its_class(schedule):
    assert repr(schedule).startswith(name(schedule) + "(")


@pytest.mark.parametrize("schedule", SAMPLES, ids=name)
def test_a_schedule_gives_a_float_at_fractions_too(schedule):
    assert type(schedule(2.5, 0.1)) is float


def test_a_product_is_multiplied_once_per_step():
    calls = []
    schedule = schedules.Multiplicative(lambda t: calls.append(t) or 0.5)
    assert [schedule(t, 1.0) for t in (0, 1, 2, 3, 3)] == [1, 0.5, 0.25, 0.125, 0.125]
    assert calls == [1, 2, 3]


def test_a_product_begins_anew_for_an_earlier_step():
    schedule = schedules.Multiplicative(alternating)
    fresh = schedules.Multiplicative(alternating)(2, 0.1)
    schedule(9, 0.1)
    assert schedule(2, 0.1) == fresh


def test_milestones_may_be_unsorted_and_repeated_and_0():
    schedule = schedules.MultiStep([5, 0, 2, 5], 0.5)
    assert [schedule(t, 16) for t in range(6)] == [8, 8, 4, 4, 4, 1]


def test_a_constant_factor_of_0_ends():
    assert [schedules.Constant(0, 2)(t, 0.1) for t in range(3)] == [0, 0, 0.1]


def test_a_line_of_no_length_is_at_its_end():
    assert schedules.Linear(0.5, 0.25, 0)(0, 1.0) == 0.25


def test_an_annealing_of_no_length_is_at_its_end():
    assert schedules.Anneal(0.02, 0)(0, 0.1) == 0.02


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 2000))
def test_restarts_are_at_base_where_a_period_ends(first, factor, t):
    begin, period = 0, first
    while begin + period <= t:
        begin, period = begin + period, period * factor
    schedule = schedules.CosineRestarts(first, factor)
    assert schedule(begin, 0.1) == 0.1
    assert schedule(t, 0.1) == schedules.Cosine(period)(t - begin, 0.1)


def test_a_restart_that_pytorchs_logarithm_misses():
    assert schedules.CosineRestarts(1, 3)(121, 0.1) == 0.1


def test_restarts_of_one_length_are_not_counted_one_by_one():
    assert schedules.CosineRestarts(7)(7 * 10**15 + 3, 0.1) == schedules.Cosine(7)(3, 0.1)


def test_restarts_take_fractions():
    assert schedules.CosineRestarts(2, 2)(2.5, 0.1) == schedules.Cosine(4)(0.5, 0.1)


@given(
    st.integers(1, 40),
    st.floats(0, 1),
    st.sampled_from(["cos", "linear"]),
    st.booleans(),
    st.floats(0, 1000),
)
def test_one_cycle_never_leaves_its_ends(total, share, strategy, three_phase, t):
    schedule = schedules.OneCycle(0.004, 0.1, 4e-7, total, share, strategy, three_phase)
    assert 4e-7 * (1 - 1e-9) <= schedule(t, 0.1) <= 0.1 * (1 + 1e-9)


@pytest.mark.parametrize("strategy", ["cos", "linear"])
@pytest.mark.parametrize("three_phase", [False, True])
def test_one_cycle_stays_where_it_ended(strategy, three_phase):
    schedule = schedules.OneCycle(0.004, 0.1, 4e-7, 10, 0.3, strategy, three_phase)
    assert {schedule(t, 0.1) for t in (9, 10, 11, 10**6)} == {schedule(9, 0.1)}
    assert schedule(9, 0.1) == pytest.approx(4e-7, rel=1e-9)


@pytest.mark.parametrize(("total", "share"), [(10, 0.1), (2, 0.5), (1, 1.0), (1, 0.3)])
def test_a_rise_of_no_length_begins_at_the_peak(total, share):
    assert schedules.OneCycle(0.004, 0.1, 4e-7, total, share)(0, 0.1) == 0.1


def test_a_wave_takes_a_scale_of_ones_own():
    of_cycles = schedules.Cyclic(0, 1, 2, scale_fn=lambda c: 10.0**c)
    of_steps = schedules.Cyclic(0, 1, 2, scale_fn=lambda t: 10.0**t, scale_mode="iterations")
    assert [of_cycles(t, 0) for t in (2, 6)] == [10, 100]
    assert [of_steps(t, 0) for t in (2, 6)] == [100, 10**6]


BAD = [
    (schedules.Lambda, (3,), TypeError, "lr_lambda must be a function, not 3"),
    (schedules.Multiplicative, (None,), TypeError, "lr_lambda must be a function, not None"),
    (schedules.Step, (0,), ValueError, "step_size must be >= 1, not 0"),
    (schedules.Step, (1.5,), TypeError, "step_size must be a whole number, not 1.5"),
    (schedules.Step, (True,), TypeError, "step_size must be a number, not True"),
    (schedules.Step, (2, -0.1), ValueError, "gamma must be >= 0, not -0.1"),
    (schedules.Step, (2, float("nan")), ValueError, "gamma must be finite, not nan"),
    (schedules.MultiStep, ([-1],), ValueError, r"milestones\[0\] must be >= 0, not -1"),
    (schedules.MultiStep, ([1, "a"],), TypeError, r"milestones\[1\] must be a number, not 'a'"),
    (schedules.MultiStep, (3,), TypeError, "milestones must be a list of numbers, not 3"),
    (schedules.MultiStep, ("12",), TypeError, "milestones must be a list of numbers, not '12'"),
    (schedules.MultiStep, ([1], -1), ValueError, "gamma must be >= 0"),
    (schedules.Constant, (-0.1,), ValueError, "factor must be >= 0, not -0.1"),
    (schedules.Constant, (1.1,), ValueError, "factor must be <= 1, not 1.1"),
    (schedules.Constant, (0.5, -1), ValueError, "total_iters must be >= 0, not -1"),
    (schedules.Linear, (-0.1,), ValueError, "start_factor must be >= 0, not -0.1"),
    (schedules.Linear, (1.1,), ValueError, "start_factor must be <= 1, not 1.1"),
    (schedules.Linear, (0.5, -0.1), ValueError, "end_factor must be >= 0, not -0.1"),
    (schedules.Linear, (0.5, 1.1), ValueError, "end_factor must be <= 1, not 1.1"),
    (schedules.Linear, (0.5, 1, -1), ValueError, "total_iters must be >= 0, not -1"),
    (schedules.Exponential, (-0.5,), ValueError, "gamma must be >= 0, not -0.5"),
    (schedules.Exponential, ("0.5",), TypeError, "gamma must be a number, not '0.5'"),
    (schedules.Polynomial, (0,), ValueError, "total_iters must be > 0, not 0"),
    (schedules.Polynomial, (5, -1), ValueError, "power must be >= 0, not -1"),
    (schedules.Polynomial, (5, 1, float("inf")), ValueError, "eta_min must be finite, not inf"),
    (schedules.Cosine, (0,), ValueError, "T_max must be > 0, not 0"),
    (schedules.Cosine, (5, None), TypeError, "eta_min must be a number, not None"),
    (schedules.CosineRestarts, (0,), ValueError, "T_0 must be >= 1, not 0"),
    (schedules.CosineRestarts, (2.5,), TypeError, "T_0 must be a whole number, not 2.5"),
    (schedules.CosineRestarts, (2, 0), ValueError, "T_mult must be >= 1, not 0"),
    (schedules.CosineRestarts, (2, 1.5), TypeError, "T_mult must be a whole number, not 1.5"),
    (schedules.Cyclic, (0, 1, 0), ValueError, "step_size_up must be > 0, not 0"),
    (schedules.Cyclic, (0, 1, 2, 0), ValueError, "step_size_down must be > 0, not 0"),
    (schedules.Cyclic, (0, 1, 2, 2, "sine"), ValueError, "mode must be one of .* not 'sine'"),
    (schedules.Cyclic, (0, 1, 2, 2, "exp_range", -1), ValueError, "gamma must be >= 0, not -1"),
    (schedules.Cyclic, (0, 1, 2, 2, "", 1, 7), TypeError, "scale_fn must be a function, not 7"),
    (schedules.Cyclic, (0, 1, 2, 2, "triangular", 1, None, "x"), ValueError, "scale_mode must be"),
    (schedules.OneCycle, (0, 1, 0, 0), ValueError, "total_steps must be >= 1, not 0"),
    (schedules.OneCycle, (0, 1, 0, 2.5), TypeError, "total_steps must be a whole number"),
    (schedules.OneCycle, (0, 1, 0, 9, -0.1), ValueError, "pct_start must be >= 0, not -0.1"),
    (schedules.OneCycle, (0, 1, 0, 9, 1.1), ValueError, "pct_start must be <= 1, not 1.1"),
    (schedules.OneCycle, (0, 1, 0, 9, 1), TypeError, "pct_start must be a float"),
    (schedules.OneCycle, (0, 1, 0, 9, 0.3, "sine"), ValueError, "anneal_strategy must be one of"),
    (schedules.OneCycle, (0, 1, 0, 9, 0.3, "cos", 1), ValueError, "three_phase must be one of"),
    (schedules.Anneal, (None,), TypeError, "swa_lr must be a number, not None"),
    (schedules.Anneal, (0.1, -1), ValueError, "anneal_epochs must be >= 0, not -1"),
    (schedules.Anneal, (0.1, 1, "sine"), ValueError, "anneal_strategy must be one of"),
    (schedules.noam, (0, 4), ValueError, "d_model must be > 0, not 0"),
    (schedules.noam, (512, 0), ValueError, "warmup must be > 0, not 0"),
]


@pytest.mark.parametrize(("make", "arguments", "error", "message"), BAD)
def test_an_argument_out_of_bounds_is_named_with_its_bound_and_value(
    make, arguments, error, message
):
    with pytest.raises(error, match=message):
        make(*arguments)
