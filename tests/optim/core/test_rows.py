"""Rows: which scalars each tensor is given, and what is counted after the step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.execution.rule import Storage
from lucid_gpu.optim import Adam
from lucid_gpu.optim.core.rows import Counts
from tests.optim.core.rules.recorder import Recorder

DOUBLE = Storage(np.dtype(np.float64), np.dtype(np.float64), ())

FRAME = 3
"""Scalars of the frame, ahead of the rule's."""


def groups_of(*amounts):
    """Groups that differ in what the rule adds up."""
    return [{"amount": amount, "number": 0.0, "maximize": False} for amount in amounts]


def counts_of(group_of, groups=None, rule=Recorder):
    groups = groups or groups_of(*range(1, 2 + max(group_of)))
    return Counts(rule.rule, groups, np.array(group_of, np.intp), DOUBLE)


def admitted(group_of, groups=None, slots=None, is_first=False):
    """Counts of tensors that all have a gradient."""
    counts = counts_of(group_of, groups)
    for tensor in range(len(group_of)):
        counts.admit(tensor, slots[tensor] if slots else {}, is_first)
    counts.set_present(np.ones(len(group_of), np.bool_))
    return counts


def given_to(counts):
    """Return the rule's scalars that each tensor with a gradient gets in the next step."""
    rows = counts.rows()
    return [
        Recorder.Scalars(*rows.scalars[row][FRAME:-1]) if is_present else None
        for row, is_present in zip(rows.row_of.tolist(), counts.present.tolist(), strict=True)
    ]


def step(counts):
    """Take a step and return what each tensor got."""
    seen = given_to(counts)
    counts.count(counts.rows())
    return seen


def shared(counts, tensor):
    return {name: number.read() for name, number in counts.shared(tensor).items()}


def test_the_first_step_of_a_tensor_is_number_one():
    assert given_to(admitted([0]))[0].t == 1


def test_a_tensor_goes_on_from_the_count_in_its_state():
    counts = admitted([0, 0], slots=[{"step": 4}, {"step": 9}])
    assert [scalars.t for scalars in given_to(counts)] == [5, 10]


def test_a_tensor_goes_on_from_the_carries_in_its_state():
    counts = admitted([0, 0], slots=[{"sum": 4.0, "power": 8.0}, {"sum": 6.0}])
    assert [scalars[2:] for scalars in given_to(counts)] == [(5.0, 16.0), (7.0, 2.0)]


def test_carries_begin_with_their_start_values():
    assert shared(counts_of([0]), 0) == {"step": 0, "sum": 0.5, "power": 1.0}


def test_tensors_of_different_groups_get_the_scalars_of_their_own():
    counts = admitted([1, 0, 1, 2])
    assert [scalars.total for scalars in given_to(counts)] == [2.5, 1.5, 2.5, 3.5]


def test_tensors_that_step_alike_share_a_row():
    rows = admitted([0, 1, 0, 1, 0]).rows()
    assert len(rows.scalars) == 2
    assert len(set(rows.row_of[[0, 2, 4]].tolist())) == 1


def test_tensors_that_differ_in_one_carry_alone_share_no_row():
    counts = admitted([0, 0], slots=[{"power": 2.0}, {"power": 4.0}])
    assert [scalars.product for scalars in given_to(counts)] == [4.0, 8.0]


def test_asking_for_rows_changes_nothing():
    counts = admitted([0, 0], is_first=True)
    before = shared(counts, 0)
    assert given_to(counts) == given_to(counts)
    assert shared(counts, 0) == before


def test_a_step_counts_tensors_with_a_gradient_alone():
    counts = admitted([0, 0])
    counts.set_present(np.array([True, False]))
    counts.count(counts.rows())
    assert [shared(counts, tensor)["step"] for tensor in (0, 1)] == [1, 0]


def test_a_step_leaves_the_carries_of_tensors_without_a_gradient():
    counts = admitted([0, 1, 0])
    counts.set_present(np.array([False, True, False]))
    counts.count(counts.rows())
    assert [shared(counts, tensor)["sum"] for tensor in range(3)] == [0.5, 2.5, 0.5]


def test_each_tensor_keeps_the_carries_of_its_own_row():
    counts = admitted([1, 0])
    counts.count(counts.rows())
    assert [shared(counts, tensor)["sum"] for tensor in (0, 1)] == [2.5, 1.5]
    assert [scalars.total for scalars in given_to(counts)] == [4.5, 2.5]


def test_carries_keep_every_digit():
    counts = admitted([0], groups_of(0.1))
    counts.count(counts.rows())
    assert shared(counts, 0)["sum"] == 0.5 + 0.1


def test_the_first_scalars_are_those_of_one_step():
    counts = admitted([0], is_first=True)
    assert [step(counts)[0].first for _ in range(3)] == [1.0, 0.0, 0.0]


def test_a_tensor_whose_slots_were_there_gets_no_first_scalars():
    assert step(admitted([0]))[0].first == 0.0


def test_the_first_scalars_wait_for_the_first_gradient():
    counts = admitted([0, 0], is_first=True)
    counts.set_present(np.array([True, False]))
    step(counts)
    counts.set_present(np.array([True, True]))
    assert [scalars.first for scalars in step(counts)] == [0.0, 1.0]
    assert [scalars.first for scalars in step(counts)] == [0.0, 0.0]


def test_a_new_tensor_of_the_same_count_shares_no_row_with_an_old_one():
    counts = counts_of([0, 0])
    counts.admit(0, {"step": 3}, is_first=False)
    counts.admit(1, {"step": 3}, is_first=True)
    counts.set_present(np.ones(2, np.bool_))
    assert [scalars.first for scalars in given_to(counts)] == [0.0, 1.0]


def test_a_rule_without_first_scalars_gives_new_and_old_tensors_one_row():
    (group,) = Adam([Parameter([1.0])]).param_groups
    counts = counts_of([0, 0], [group], Adam)
    counts.admit(0, {"step": 3}, is_first=False)
    counts.admit(1, {"step": 3}, is_first=True)
    counts.set_present(np.ones(2, np.bool_))
    assert len(counts.rows().scalars) == 1


def test_a_tensor_admitted_later_is_looked_at():
    counts = counts_of([0, 1])
    counts.admit(0, {}, is_first=False)
    counts.set_present(np.array([True, True]))
    counts.rows()
    counts.admit(1, {"step": 5}, is_first=True)
    assert given_to(counts)[1] == (6, 1.0, 2.5, 2.0)


def test_rows_stay_the_same_object_while_tensors_step_alike():
    counts = admitted([0, 1, 0])
    first = counts.rows()
    counts.count(first)
    assert counts.rows().row_of is first.row_of


def test_tensors_that_come_and_go_find_the_rows_that_they_had():
    counts = admitted([0, 1, 0])
    counts.count(counts.rows())
    seen = []
    for present in ([True, False, True], [True] * 3) * 2:
        counts.set_present(np.array(present))
        seen.append(counts.rows().row_of)
    assert seen[2] is seen[0]
    assert seen[3] is seen[1]


def test_tensors_of_which_one_was_absent_share_no_row_as_before():
    counts = admitted([0, 0])
    step(counts)
    counts.set_present(np.array([True, False]))
    step(counts)
    counts.set_present(np.array([True, True]))
    assert [scalars.t for scalars in given_to(counts)] == [3, 2]


def test_tensors_that_stepped_one_after_the_other_keep_their_own_carries():
    groups = groups_of(1.0)
    counts = admitted([0, 0], groups)
    counts.rows()
    for present in ([True, False], [False, True]):
        counts.set_present(np.array(present))
        step(counts)
        groups[0]["amount"] += 1.0
    counts.set_present(np.array([True, True]))
    assert [scalars.t for scalars in given_to(counts)] == [2, 2]
    assert [scalars.total for scalars in given_to(counts)] == [4.5, 5.5]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_tensors_in_any_steps(data):
    """Each tensor gets what it would get if it were alone."""
    size = data.draw(st.integers(1, 7))
    group_of = data.draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    groups = groups_of(1.0, 2.0, 4.0)
    begin = st.fixed_dictionaries({"step": st.integers(0, 3), "sum": st.sampled_from([0.0, 2.0])})
    slots = data.draw(st.lists(begin, min_size=size, max_size=size))
    firsts = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    together = counts_of(group_of, groups)
    alone = [counts_of([0], [groups[group]]) for group in group_of]
    for tensor, (own, is_first) in enumerate(zip(slots, firsts, strict=True)):
        together.admit(tensor, own, is_first)
        alone[tensor].admit(0, own, is_first)
    for _ in range(data.draw(st.integers(1, 6))):
        present = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        together.set_present(np.array(present))
        for one, is_present in zip(alone, present, strict=True):
            one.set_present(np.array([is_present]))
        if data.draw(st.booleans()):
            groups[data.draw(st.integers(0, 2))]["amount"] += 0.25
        assert step(together) == [step(one)[0] for one in alone]
        for tensor, one in enumerate(alone):
            assert shared(together, tensor) == shared(one, 0)
