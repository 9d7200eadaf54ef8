"""matching: which saved parameter belongs to which of the optimizer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu.optim.core.matching import match_groups


def own(*names):
    return {"params": [f"<{name}>" for name in names], "param_names": list(names)}


def saved(ids, names=None, **options):
    return {"params": ids, **({} if names is None else {"param_names": names}), **options}


def matched(groups, saved_groups):
    """Return the pairs of each match as {name: saved id}, its saved options, and the problems."""
    problems = []
    matches = match_groups(groups, saved_groups, problems)
    for match in matches:
        assert match.group is groups[match.index]
        assert all(param == f"<{name}>" for name, param, _ in match.pairs)
    pairs = [{name: saved_id for name, _, saved_id in match.pairs} for match in matches]
    return pairs, [match.saved for match in matches], problems


def test_equal_names_in_equal_order_match_in_order():
    groups = [saved([0, 1], ["a", "a"])]
    assert matched([own("a", "a")], groups)[0] == [{"a": 1}]
    assert matched([own("a", "a")], groups)[2] == []


@given(st.permutations(["a", "b", "c", "d"]), st.permutations(["a", "b", "c", "d"]))
def test_names_match_whatever_their_order(here, there):
    pairs, _, problems = matched([own(*here)], [saved([f"id {n}" for n in there], there)])
    assert pairs == [{name: f"id {name}" for name in here}]
    assert problems == []


def test_groups_match_by_the_names_in_them():
    first, second = saved([0], ["a"], lr=1), saved([1, 2], ["b", "c"], lr=2)
    pairs, options, problems = matched([own("c", "b"), own("a")], [first, second])
    assert pairs == [{"c": 2, "b": 1}, {"a": 0}]
    assert options == [second, first]
    assert problems == []


def test_a_group_split_in_two_takes_the_options_of_the_one():
    group = saved([0, 1], ["a", "b"])
    pairs, options, problems = matched([own("b"), own("a")], [group])
    assert pairs == [{"b": 1}, {"a": 0}]
    assert options == [group, group]
    assert problems == ["it has 1 parameter groups, this optimizer has 2"]


def test_groups_joined_to_one_have_no_options_to_take():
    pairs, options, problems = matched([own("a", "b")], [saved([0], ["a"]), saved([1], ["b"])])
    assert pairs == [{"a": 0, "b": 1}]
    assert options == [{}]
    assert any("spread over its groups 0, 1" in problem for problem in problems)


def test_names_of_one_side_only_match_by_position():
    positional = own("0.0", "0.1")
    assert matched([positional], [saved([5, 6], ["a", "b"])])[0] == [{"0.0": 5, "0.1": 6}]
    assert matched([own("a", "b")], [saved([5, 6], ["0.0", "0.1"])])[0] == [{"a": 5, "b": 6}]
    assert matched([own("a", "b")], [saved([5, 6])])[0] == [{"a": 5, "b": 6}]


def test_sizes_that_differ_leave_the_group_out():
    pairs, _, problems = matched([own("0.0"), own("1.0")], [saved([0, 1]), saved([2])])
    assert pairs == [{"1.0": 2}]
    assert problems == ["group 0 has 2 parameters saved, 1 here: '0.0'"]


def test_repeated_names_of_either_side_are_ambiguous():
    for groups, others in (
        ([own("a", "a", "b")], [saved([0, 1, 2], ["b", "a", "c"])]),
        ([own("b", "a")], [saved([0, 1], ["a", "a"])]),
    ):
        pairs, _, problems = matched(groups, others)
        assert pairs == []
        assert any("'a' stand for several" in problem for problem in problems)


def test_what_only_one_side_has_is_listed():
    pairs, _, problems = matched([own("a", "new")], [saved([0, 1], ["a", "gone"])])
    assert pairs == [{"a": 0}]
    assert problems == [
        "group 0: 'new' is not in it",
        "'gone' is in it but not in this optimizer",
    ]
