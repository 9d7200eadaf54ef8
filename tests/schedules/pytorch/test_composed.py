from __future__ import annotations

import pytest

from lucid_gpu.schedules import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    Step,
)
from tests.schedules.golden import sgd


def course(scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.step()
    return rates


def test_a_chain_composes_what_overwrites_in_pytorch():
    optimizer = sgd(1.0)
    halves = [LambdaLR(optimizer, lambda t: 0.5), LambdaLR(optimizer, lambda t: 0.5)]
    assert course(ChainedScheduler(halves), 2) == [0.25, 0.25]


def test_a_sequence_within_a_sequence_starts_in_time():
    optimizer = sgd(8.0)
    inner = [ConstantLR(optimizer, 0.5, 9), ConstantLR(optimizer, 0.25, 9)]
    parts = [ConstantLR(optimizer, 1.0, 9), SequentialLR(optimizer, inner, [2])]
    assert course(SequentialLR(optimizer, parts, [3]), 7) == [8, 8, 8, 4, 4, 2, 2]


def test_a_chain_may_be_a_part_of_a_sequence():
    optimizer = sgd(8.0)
    chained = ChainedScheduler([ConstantLR(optimizer, 0.5, 9), ExponentialLR(optimizer, 0.5)])
    scheduler = SequentialLR(optimizer, [ConstantLR(optimizer, 1.0, 9), chained], [2])
    assert course(scheduler, 5) == [8, 8, 4, 2, 1]


def test_a_product_in_second_place_starts_from_base():
    optimizer = sgd(8.0)
    parts = [ConstantLR(optimizer, 0.5, 9), MultiplicativeLR(optimizer, lambda t: 0.5)]
    assert course(SequentialLR(optimizer, parts, [2]), 5) == [4, 4, 8, 4, 2]


def test_parts_keep_a_schedule_for_each_group():
    optimizer = sgd(8.0, groups=2)
    parts = [
        LambdaLR(optimizer, [lambda t: 0.5, lambda t: 0.25]),
        ConstantLR(optimizer, 0.5, 9),
    ]
    assert ChainedScheduler(parts).get_last_lr() == [2, 0.5]


def test_momentum_is_cycled_by_the_part_that_cycles_it():
    optimizer = sgd()
    parts = [LinearLR(optimizer, 0.5, 1, 3), OneCycleLR(optimizer, 0.1, 10)]
    scheduler = SequentialLR(optimizer, parts, [3])
    assert optimizer.param_groups[0]["momentum"] == 0.9
    scheduler.step(3)
    assert optimizer.param_groups[0]["momentum"] == 0.95


def test_a_wave_that_was_made_first_does_not_change_the_base_of_others():
    optimizer = sgd()
    CyclicLR(optimizer, 0.01, 0.1)
    assert ExponentialLR(optimizer, 0.5).base_lrs == [0.1]


def test_a_part_is_not_stepped_by_itself():
    optimizer = sgd()
    parts = [LinearLR(optimizer), CosineAnnealingLR(optimizer, 5)]
    scheduler = SequentialLR(optimizer, parts, [5])
    with pytest.raises(RuntimeError, match="'lr' of this optimizer is scheduled by SequentialLR"):
        parts[0].step()
    scheduler.step()
    assert scheduler.last_epoch == 1


def test_a_part_that_ticks_by_itself_is_refused():
    optimizer = sgd()
    part = LinearLR(optimizer, every="step")
    with pytest.raises(ValueError, match=r"LinearLR.* ticks with it: call its detach"):
        SequentialLR(optimizer, [part], [])


BAD = [
    (SequentialLR, [], [], TypeError, "schedulers must be a list of at least one"),
    (SequentialLR, [LinearLR], [1], ValueError, "1 schedules need 0 milestones, not 1"),
    (SequentialLR, [LinearLR, LinearLR, LinearLR], [5, 1], ValueError, "milestones must rise"),
    (SequentialLR, [LinearLR, LinearLR], [-1], ValueError, r"milestones\[0\] must be >= 0"),
    (SequentialLR, [lambda optimizer: Step(3)], [], TypeError, r"schedulers\[0\] must be a Sch"),
    (SequentialLR, [lambda optimizer: LinearLR(sgd())], [], ValueError, "made for another opt"),
    (SequentialLR, [ReduceLROnPlateau], [], TypeError, "is a ReduceLROnPlateau.* lr=chain"),
    (ChainedScheduler, [], None, TypeError, "schedulers must be a list of at least one"),
    (ChainedScheduler, [ReduceLROnPlateau], None, TypeError, "is a ReduceLROnPlateau.* lr=chain"),
]


@pytest.mark.parametrize(("kind", "makers", "milestones", "error", "message"), BAD)
def test_parts_that_cannot_be_composed_are_refused(kind, makers, milestones, error, message):
    optimizer = sgd()
    parts = [make(optimizer) for make in makers]
    arguments = (optimizer, parts, milestones) if kind is SequentialLR else (parts, optimizer)
    with pytest.raises(error, match=message):
        kind(*arguments)
