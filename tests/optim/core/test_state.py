"""state: the mapping from parameter to its slots."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim.core.state import Shared, State


class Unhashable:
    """A parameter that compares element by element, as arrays do."""

    __hash__ = None

    def __eq__(self, other):
        return np.array([True, False])


@pytest.fixture
def param():
    return Unhashable()


def test_reading_makes_an_empty_entry(param):
    state = State()
    assert param not in state
    assert dict(state[param]) == {}
    assert param in state
    assert next(iter(state)) is param


def test_get_makes_none(param):
    state = State()
    assert state.get(param) is None
    assert state.get(param, "default") == "default"
    assert len(state) == 0


def test_parameters_are_told_apart_by_identity(param):
    state = State()
    state[param]["x"] = 1
    other = Unhashable()
    state[other]["x"] = 2
    assert [slots["x"] for slots in state.values()] == [1, 2]


def test_an_entry_can_be_set_from_a_dict_which_is_copied(param):
    state, given = State(), {"x": 1}
    state[param] = given
    state[param]["x"] = 2
    assert given == {"x": 1}


def test_an_entry_can_be_deleted(param):
    state = State()
    state[param] = {"x": 1}
    del state[param]
    assert param not in state
    with pytest.raises(KeyError):
        del state[param]


def test_clear_removes_all(param):
    state = State()
    state[param]["x"] = 1
    state.clear()
    assert len(state) == 0


def test_slots_read_a_shared_count_as_an_int(param):
    state, counts = State(), np.array([0, 3])
    state[param]["step"] = Shared(counts, 1)
    counts += 1
    assert type(state[param]["step"]) is int
    assert state[param]["step"] == 4
    assert dict(state[param].items()) == {"step": 4}


def test_setting_a_count_leaves_those_of_the_others(param):
    state, counts, other = State(), np.array([3, 3]), Unhashable()
    state[param]["step"], state[other]["step"] = Shared(counts, 0), Shared(counts, 1)
    state[param]["step"] = 10
    assert (state[param]["step"], state[other]["step"]) == (10, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda s, p: s[p].update(x=2),
        lambda s, p: s[p].pop("x"),
        lambda s, p: s.__setitem__(p, {"x": 3}),
        lambda s, p: s.__delitem__(p),
    ],
    ids=["set a slot", "delete a slot", "set an entry", "delete an entry"],
)
def test_every_change_is_noted(param, change):
    state = State()
    state[param]["x"] = 1
    before = state.version
    change(state, param)
    assert state.version is not before


def test_reading_is_no_change(param):
    state = State()
    state[param]["x"] = 1
    before = state.version
    _ = state[param]["x"], state.get(param), dict(state[param]), param in state
    assert state.version is before


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_duplicate_holds_counts_and_is_independent(duplicate):
    param, state, counts = Parameter([1.0]), State(), np.array([3])
    state[param] = {"step": Shared(counts, 0), "x": np.ones(1)}
    twin = duplicate(state)
    counts += 1
    slots = next(iter(twin.values()))
    assert slots["step"] == 3
    slots["x"][...] = 7
    assert state[param]["x"].tolist() == [1.0]


def test_repr_shows_the_slots(param):
    state = State()
    state[param] = {"step": Shared(np.array([3]), 0)}
    assert repr(state) == "State([{'step': 3}])"
    assert repr(state[param]) == "{'step': 3}"
