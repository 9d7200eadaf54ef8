"""The order of canonical sums: what is folded to what, and the layouts that gradients may have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu.execution import sums
from tests.execution import sums_oracle as oracle

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 255, 256, 257, 1000])
def test_folding_is_a_loop_over_lanes_and_a_tree(count, rng):
    values = rng.normal(size=count + 3)
    (folded,) = sums.fold(values, np.array([[3, count + 3]]))
    assert oracle.bits([folded]) == oracle.bits([oracle.fold(values[3:].tolist())])


@settings(deadline=None, derandomize=True)
@given(lengths=st.lists(st.integers(0, 700), min_size=1, max_size=300))
def test_ranges_are_folded_apart(lengths):
    ends = np.cumsum(lengths)
    values = np.random.default_rng(len(lengths)).normal(size=int(ends[-1]))
    ranges = np.stack([ends - lengths, ends], axis=1)
    alone = [oracle.fold(values[begin:end].tolist()) for begin, end in ranges.tolist()]
    assert oracle.bits(sums.fold(values, ranges)) == oracle.bits(alone)
    counts = np.arange(len(values))
    expected = [int(counts[begin:end].sum()) for begin, end in ranges.tolist()]
    assert sums.fold_counts(counts, ranges).tolist() == expected


def test_chunks_of_one_dtype_are_neighbours_and_tensors_keep_their_order():
    plan = sums.plan_sums([5000, 3, 0, 4096], [F4, F8, F4, F4])
    assert plan.runs == [(F4, 0, 3), (F8, 3, 4)]
    assert plan.chunks.tolist() == [(0, 0, 4096), (4096, 0, 904), (0, 3, 4096), (0, 1, 3)]
    assert plan.pages.tolist() == [[0, 2], [2, 3], [3, 4]]
    assert plan.tensors.tolist() == [[0, 1], [2, 3], [1, 1], [1, 2]]


def test_a_page_has_256_chunks():
    plan = sums.plan_sums([4096 * 300, 4096 * 256, 1], [F4] * 3)
    assert plan.pages.tolist() == [[0, 256], [256, 300], [300, 556], [556, 557]]
    assert plan.tensors.tolist() == [[0, 2], [2, 3], [3, 4]]


@given(sizes=st.lists(st.integers(0, 3).map(lambda chunks: chunks * 4096 * 100), max_size=9))
def test_every_node_awaits_the_parts_that_name_it_and_are_told_of(sizes):
    plan = sums.plan_sums(sizes, [F4, F8, F4, F4, F8, F4, F4, F4, F4][: len(sizes)])
    nodes = plan.nodes(has_total=True)
    assert nodes["parent"][-1] == -1
    told = (np.arange(len(nodes)) < len(plan.chunks)) | (nodes["awaited"] > 0)
    for number, (begin, end, awaited, _) in enumerate(nodes.tolist()):
        parts = np.flatnonzero(nodes["parent"] == number)
        assert parts.tolist() == list(range(begin, end))
        assert awaited == np.count_nonzero(told[parts])


@given(data=st.data())
def test_axes_walk_an_array_in_its_c_order(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 4), max_size=4)))
    base = np.arange(np.prod(shape, dtype=int) * 2).reshape(*shape, 2)[..., 0]
    array = base.transpose(data.draw(st.permutations(range(base.ndim))))
    array = array[tuple(slice(None, None, data.draw(st.sampled_from([1, -1]))) for _ in shape)]
    extents, strides = sums.logical_axes(array.shape, array.strides)
    assert 1 not in extents
    walked = np.lib.stride_tricks.as_strided(array, extents, strides)
    assert walked.ravel().tolist() == array.ravel().tolist()


def test_layouts_have_numbers_that_stay():
    known = sums.Layouts()
    one, other = np.ones((4, 7), "f4")[:, ::2], np.ones((4, 6), "f4").T
    assert known.numbers([None, one, np.ones(3), one]).tolist() == [0, 1, 0, 1]
    records = known.records
    assert known.numbers([one]).tolist() == [1]
    assert known.records is records
    assert known.numbers([other, one]).tolist() == [2, 1]
    assert known.records["rank"].tolist() == [2, 2]


def test_layouts_that_are_no_more_in_use_are_forgotten(monkeypatch):
    monkeypatch.setattr(sums, "MOST_LAYOUTS", 4)
    known = sums.Layouts()
    for width in range(2, 12):
        array = np.ones((4, 2 * width - 1), "f4")[:, ::2]
        (number,) = known.numbers([array])
        assert known.records[number - 1]["extent"][:2].tolist() == [4, width]
        assert len(known.records) <= 5
