from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu import schedules
from lucid_gpu.schedules import Constant, Cosine, Exponential, Linear, Multiplicative, Step

LEAVES = st.sampled_from(
    [
        Constant(0.5, 3),
        Linear(0.1, 1, 4),
        Exponential(0.9),
        Cosine(5, 0.01),
        Step(2, 0.5),
        schedules.CosineRestarts(2, 2),
        schedules.Cyclic(0.01, 0.1, 2),
    ]
)


def branches(children):
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda pair: schedules.chain(*pair)),
        st.tuples(pairs, st.integers(0, 6)).map(
            lambda parts: schedules.sequence(parts[0], [parts[1]])
        ),
    )


TREES = st.recursive(LEAVES, branches, max_leaves=8)


@given(TREES, TREES, st.integers(0, 30))
def test_a_chain_gives_the_second_what_the_first_gives(f, g, t):
    assert schedules.chain(f, g)(t, 0.1) == g(t, f(t, 0.1))


@given(st.lists(TREES, min_size=1, max_size=4), st.data(), st.integers(0, 40))
def test_a_sequence_gives_each_its_own_time_and_base(parts, data, t):
    count = len(parts) - 1
    milestones = sorted(data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count)))
    begins = [0, *milestones]
    turn = max(index for index, begin in enumerate(begins) if begin <= t)
    expected = parts[turn](t - begins[turn], 0.1)
    assert schedules.sequence(parts, milestones)(t, 0.1) == expected


def test_a_repeated_milestone_skips_what_is_between():
    parts = [Constant(0.5, 99), Constant(0.25, 99), Constant(0.125, 99)]
    schedule = schedules.sequence(parts, [2, 2])
    assert [schedule(t, 8) for t in range(4)] == [4, 4, 1, 1]


def test_a_milestone_may_be_0():
    assert schedules.sequence([Constant(0.5, 9), Constant(0.25, 9)], [0])(0, 8) == 2


def test_a_nested_sequence_starts_with_its_first_step():
    inner = schedules.sequence([Constant(0.5, 9), Constant(0.25, 9)], [2])
    schedule = schedules.sequence([Constant(1, 9), inner], [3])
    assert [schedule(t, 8) for t in range(7)] == [8, 8, 8, 4, 4, 2, 2]


def test_a_product_in_second_place_starts_from_base():
    schedule = schedules.sequence([Constant(0.5, 9), Multiplicative(lambda t: 0.5)], [2])
    assert [schedule(t, 8) for t in range(5)] == [4, 4, 8, 4, 2]


def test_what_is_held_stays():
    schedule = schedules.hold(Exponential(0.5), 2)
    assert [schedule(t, 8) for t in range(5)] == [8, 4, 2, 2, 2]


def rises_and_falls(schedule, warmup, total, floor):
    rates = [schedule(t, 0.1) for t in range(total + 20)]
    assert rates[: warmup + 1] == pytest.approx([0.1 * t / warmup for t in range(warmup + 1)])
    fall = rates[warmup:]
    assert all(now >= then for now, then in itertools.pairwise(fall))
    assert set(rates[total:]) == {floor}


@pytest.mark.parametrize("make", [schedules.warmup_cosine, schedules.warmup_linear])
@given(st.integers(1, 20), st.integers(1, 50), st.sampled_from([0.0, 0.01]))
def test_a_warmed_up_schedule_rises_to_base_and_falls_to_its_floor(make, warmup, fall, floor):
    rises_and_falls(make(warmup, warmup + fall, floor), warmup, warmup + fall, floor)


@given(st.integers(1, 9), st.integers(0, 9), st.integers(1, 9), st.sampled_from([0.0, 0.01]))
def test_a_trapezoid_stays_at_base_between_its_slopes(warmup, stable, decay, floor):
    schedule = schedules.wsd(warmup, stable, decay, floor)
    rises_and_falls(schedule, warmup, warmup + stable + decay, floor)
    assert {schedule(warmup + t, 0.1) for t in range(stable + 1)} == {0.1}
    assert schedule(warmup + stable + decay / 2, 0.1) == pytest.approx((0.1 + floor) / 2)


@pytest.mark.parametrize("make", [schedules.warmup_cosine, schedules.warmup_linear])
def test_without_a_warm_up_it_begins_at_base(make):
    assert make(0, 10)(0, 0.1) == 0.1


def test_the_noam_schedule_peaks_where_the_warm_up_ends():
    schedule = schedules.noam(512, 4000)
    rates = [schedule(t, 0.1) for t in range(0, 12000, 1000)]
    assert max(rates) == rates[4] == pytest.approx((512 * 4000) ** -0.5)


BAD = [
    (schedules.chain, (), TypeError, "schedules is empty"),
    (schedules.chain, (3,), TypeError, "must be a function .* not 3"),
    (schedules.sequence, ([], []), TypeError, "schedules is empty"),
    (schedules.sequence, ([Step(2)], [1]), ValueError, "1 schedules need 0 milestones, not 1"),
    (schedules.sequence, ([Step(2)] * 3, [5, 1]), ValueError, r"must rise, not \[5, 1\]"),
    (schedules.sequence, ([Step(2)] * 2, [-1]), ValueError, r"milestones\[0\] must be >= 0"),
    (schedules.sequence, ([Step(2)] * 2, 3), TypeError, "milestones must be a list of numbers"),
    (schedules.hold, (3, 1), TypeError, "must be a function"),
    (schedules.hold, (Step(2), -1), ValueError, "until must be >= 0, not -1"),
    (schedules.warmup_cosine, (-1, 5), ValueError, "warmup must be >= 0, not -1"),
    (schedules.warmup_cosine, (5, 5), ValueError, "total must be > 5, not 5"),
    (schedules.warmup_cosine, (1, 5, None), TypeError, "floor must be a number"),
    (schedules.warmup_linear, (None, 4), TypeError, "warmup must be a number, not None"),
    (schedules.warmup_linear, (1, 4, "x"), TypeError, "floor must be a number, not 'x'"),
    (schedules.wsd, (1, 1, 1, math.nan), ValueError, "floor must be finite, not nan"),
    (schedules.warmup_linear, (5, 4), ValueError, "total must be > 5, not 4"),
    (schedules.wsd, (-1, 1, 1), ValueError, "warmup must be >= 0, not -1"),
    (schedules.wsd, (1, -1, 1), ValueError, "stable must be >= 0, not -1"),
    (schedules.wsd, (1, 1, 0), ValueError, "decay must be > 0, not 0"),
]


@pytest.mark.parametrize(("make", "arguments", "error", "message"), BAD)
def test_an_argument_out_of_bounds_is_named(make, arguments, error, message):
    with pytest.raises(error, match=message):
        make(*arguments)
