"""Tensors: what keeps a parameter from stepping."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu.optim.core import tensors
from lucid_gpu.optim.core.tensors import (
    Declared,
    Tensor,
    misfits,
    numeric,
    require_apart,
    require_trainable,
    slot_problems,
    step_problems,
    unwritable,
)


def view(shape, strides, nbytes=4096):
    """A float32 array of any strides, which can be written to."""
    return np.ndarray(shape, np.float32, bytearray(nbytes), strides=strides)


@pytest.mark.parametrize(
    ("shape", "strides"), [((2,), (0,)), ((2, 3), (0, 4)), ((3, 2), (8, 0)), ((5,), (0,))]
)
def test_a_broadcast_view_is_refused_from_an_extent_of_two_on(shape, strides):
    array = view(shape, strides)
    assert array.flags.writeable
    (text,) = unwritable("it", array)
    assert text.startswith("it is a broadcast view, whose elements share memory")


@pytest.mark.parametrize(
    ("shape", "strides"), [((1,), (0,)), ((3, 1), (4, 0)), ((0, 2), (0, 0)), ((), ())]
)
def test_an_extent_of_one_or_none_shares_no_memory_whatever_its_stride(shape, strides):
    assert unwritable("it", view(shape, strides)) == []


def test_an_array_that_is_read_only_is_refused():
    array = np.ones(2, np.float32)
    array.flags.writeable = False
    assert unwritable("it", array) == ["it is read-only: pass a copy, or set flags.writeable"]


@pytest.mark.parametrize("step", [0, 1, 2**53, np.int64(1)])
def test_a_step_count_is_exact_as_a_float64(step):
    assert step_problems(step) == []


@pytest.mark.parametrize("step", [-1, 2**53 + 1, 1.0, True, None, "1", np.int64(-1)])
def test_what_is_no_step_count_is_named(step):
    (text,) = step_problems(step)
    assert text.endswith(f"not {step!r}")


def test_a_step_count_of_thousands_of_digits_is_told_by_its_bits():
    (text,) = step_problems(10**5000)
    assert text.endswith("not one of 16610 bits")


DECLARED = {
    "step": Declared("count", is_required=True),
    "sum": Declared("number", is_required=True),
    "own": Declared("array", is_required=True),
    "some": Declared("array"),
}
FITTING = {"step": 1, "sum": 0.5, "own": np.zeros(2, np.float32)}


@pytest.mark.parametrize("more", [{}, {"some": np.zeros(2, np.float32)}, {"sum": 2}])
def test_slots_that_were_declared_can_be_loaded(more):
    assert slot_problems(DECLARED, {**FITTING, **more}, np.zeros(2, np.float32)) == []


@pytest.mark.parametrize("name", FITTING)
def test_a_slot_that_is_required_must_be_there(name):
    slots = {key: value for key, value in FITTING.items() if key != name}
    problems = slot_problems(DECLARED, slots, np.zeros(2, np.float32))
    assert problems == [f"slot {name!r} is missing"]


@pytest.mark.parametrize(
    ("slots", "text"),
    [
        ({"other": 1}, "slot 'other' is unknown"),
        ({"step": -1}, "slot 'step' must be an int >= 0"),
        ({"sum": "much"}, "slot 'sum' must be a number, not 'much'"),
        ({"sum": True}, "slot 'sum' must be a number, not True"),
        ({"own": 3.0}, "slot 'own' is a float, not a NumPy"),
        ({"own": np.zeros(3, np.float32)}, "slot 'own' has shape (3,)"),
        ({"some": np.zeros(2)}, "slot 'some' has dtype float64"),
    ],
)
def test_a_slot_that_cannot_be_loaded_is_named(slots, text):
    problems = slot_problems(DECLARED, {**FITTING, **slots}, np.zeros(2, np.float32))
    assert len(problems) == 1
    assert problems[0].startswith(text)


def test_all_that_does_not_fit_is_named_at_once():
    problems = misfits("it", np.zeros(3), np.zeros(2, np.float32))
    assert [text.split(",")[0] for text in problems] == [
        "it has shape (3",
        "it has dtype float64",
    ]


def test_only_what_is_asked_for_is_compared():
    assert misfits("it", np.zeros(3), np.zeros(2), "dtype") == []
    assert misfits("it", np.zeros(2), np.zeros(2, np.float32), "shape", "device") == []


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floats_can_be_trained(dtype):
    array = np.zeros(2, dtype)
    assert numeric(array) is require_trainable("w", array) is array


@pytest.mark.parametrize("dtype", ["i2", "i4", "c8", "?"])
def test_other_dtypes_cannot_and_may_lie_idle(dtype):
    array = np.zeros(2, dtype)
    assert numeric(array) is None
    with pytest.raises(TypeError, match=f"'w' has dtype {array.dtype}: use float32 or float64"):
        require_trainable("w", array)


def elements(array, base):
    """The positions in ``base`` of the elements of a view."""
    if not array.size:
        return set()
    numbers = np.arange(base.size).reshape(base.shape)
    like = np.ndarray(
        array.shape,
        numbers.dtype,
        numbers,
        (array.ctypes.data - base.ctypes.data) * 2,
        [2 * stride for stride in array.strides],
    )
    return set(like.ravel().tolist())


def tensor(name, array):
    return Tensor(0, 0, name, None, array, None)


def refused(arrays):
    named = [tensor(str(number), array) for number, array in enumerate(arrays)]
    try:
        require_apart(named)
    except ValueError:
        return True
    return False


slices = st.builds(
    slice,
    st.none() | st.integers(-8, 8),
    st.none() | st.integers(-8, 8),
    st.sampled_from([1, 2, 3, -1, -2, None]),
)
cuts = st.tuples(slices, slices, st.booleans())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(cuts, min_size=2, max_size=4))
def test_views_are_refused_if_and_only_if_two_share_an_element(chosen):
    base = np.zeros((6, 7), np.float32)
    views = [base[own[:2]].T if own[2] else base[own[:2]] for own in chosen]
    sets = [elements(array, base) for array in views]
    share = any(one & other for one, other in itertools.combinations(sets, 2))
    assert refused(views) == share


def test_an_overlap_with_one_that_reaches_over_others_is_seen():
    base = np.zeros(10, np.float32)
    assert refused([base, base[5:6]])
    assert refused([base[::2], base[1:2], base[3:4], base[6:7]])


def test_an_overlap_of_less_than_an_element_is_seen():
    memory = bytearray(16)
    one, other = (np.ndarray(2, np.float32, memory, offset) for offset in (0, 6))
    assert refused([one, other])


def test_neighbours_share_nothing():
    base = np.zeros(10, np.float32)
    assert not refused([base[:5], base[5:], base[5:5]])


def test_views_too_intricate_to_compare_count_as_one(monkeypatch):
    monkeypatch.setattr(tensors, "OVERLAP_WORK", 1)
    base = np.zeros((30, 30, 30), np.float32)
    assert refused([base[::2, ::3, ::5], base[1::3, ::2, 1::3]])


def test_an_overlap_is_named():
    base = np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="parameters 'b' and 'a' share memory"):
        require_apart([tensor("a", base[1:]), tensor("c", np.zeros(2)), tensor("b", base[:2])])
