"""Tensors that are not contiguous: axes merged, and one launch each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu.execution import plan, strided
from lucid_gpu.execution.strided import merge_axes
from tests import rules
from tests.execution.claims import compiles, layout_claims

every_rule = pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
every_dtype = pytest.mark.parametrize("dtype", rules.DTYPES)


@every_rule
@every_dtype
def test_records_lie_as_the_structs_of_the_kernel(rule, dtype):
    claims = []
    for variant in rules.variants(rule):
        record = strided.tensor_record(rule.rule, variant, dtype)
        assert record.itemsize <= 4096  # what a launch takes
        functor = plan.functor(rule.rule, variant, dtype)
        claims += layout_claims(record, f"StridedTensor<{functor}, {plan.c_type(dtype)}>")
        claims += layout_claims(record["array"].base, "Strides")
    compiles(rule, [*claims, f"kMaxRank == {strided.MAX_RANK}"])


@st.composite
def views(draw):
    """Views of one shape: axes permuted, cut, reversed, broadcast, of one element."""
    shape = draw(st.lists(st.integers(1, 4), max_size=5))
    arrays = []
    for position in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(range(len(shape))))
        steps = [draw(st.sampled_from([1, 1, 2, -1])) for _ in shape]
        base = np.zeros([shape[axis] * abs(steps[axis]) for axis in order])
        view = base.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
        if position and draw(st.booleans()):
            view = np.broadcast_to(view[:1] if shape else view, shape)
        arrays.append(view)
    return arrays


def addresses(array):
    """The address of each element, in C order."""
    places = np.zeros((), np.int64)
    for extent, stride in zip(array.shape, array.strides, strict=True):
        places = places[..., None] + np.arange(extent) * stride
    return places.reshape(-1)


def walked(extents, strides):
    places = np.zeros((), np.int64)
    for extent, stride in zip(extents, strides, strict=True):
        places = places[..., None] + np.arange(extent) * stride
    return places.reshape(-1)


@given(views())
def test_merged_axes_visit_the_same_elements_of_all_arrays_together(arrays):
    shape = arrays[0].shape
    extents, strides = merge_axes(shape, [array.strides for array in arrays])
    expected = np.stack([addresses(array) for array in arrays], axis=1)
    visited = np.stack([walked(extents, own) for own in strides], axis=1)
    order = np.lexsort(expected.T), np.lexsort(visited.T)
    np.testing.assert_array_equal(expected[order[0]], visited[order[1]])


def test_arrays_that_are_cut_alike_are_walked_along_two_axes():
    view = np.zeros((3, 5, 8, 6))[:, :, :, :3]
    assert merge_axes(view.shape, [view.strides] * 3) == ([120, 3], [[48, 8]] * 3)


def test_every_second_element_is_one_axis():
    view = np.zeros((3, 5, 8, 6))[:, :, :, ::2]
    assert merge_axes(view.shape, [view.strides]) == ([360], [[16]])


def test_the_innermost_axis_is_the_one_along_which_the_parameter_is_dense():
    view = np.zeros((4, 6, 5)).transpose(2, 0, 1)[:, ::2]
    extents, (strides,) = merge_axes(view.shape, [view.strides])
    assert strides[-1] == 8
    assert extents == [2, 30]


def test_no_array_has_axes_of_one_element():
    assert merge_axes((1, 1), [(8, 8)]) == ([], [[]])
