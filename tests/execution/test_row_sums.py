"""Sums of rows: in order of appearance, to the same bits on every device."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu.device import transfer
from lucid_gpu.execution.row_sums import coalesced
from tests.stepping import bits, place


def one_by_one(rows, values):
    """Add value after value to its row, as a loop does."""
    sums = {}
    for row, value in zip(rows.tolist(), values, strict=True):
        sums[row] = sums[row] + value if row in sums else value.copy()
    found = sorted(sums)
    return found, [sums[row] for row in found]


def assert_in_order(rows, values, device, layout="C"):
    expected, sums = one_by_one(rows, values)
    own, found = coalesced(place(rows, device).view, place(values, device, layout).view)
    assert transfer.to(own, "cpu").tolist() == expected
    np.testing.assert_array_equal(bits(found), bits(np.array(sums).reshape(found.shape)))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    width=st.sampled_from([(), (1,), (3,), (2, 2)]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 9),
)
def test_values_of_a_row_are_added_in_order_of_appearance(rows, width, dtype, seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-6, 6, (len(rows), *width))
    values = np.asarray(rng.normal(size=(len(rows), *width)) * scale, dtype)
    assert_in_order(np.array(rows), values, "cpu")


@pytest.mark.parametrize("layout", ["C", "F", "strided"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint8])
def test_devices_layouts_and_kinds_of_integers_do_not_matter(device, kind, dtype, layout, rng):
    rows = rng.integers(0, 20, 300).astype(kind)
    values = (rng.normal(size=(300, 7)) * 10.0 ** rng.integers(-5, 5, (300, 7))).astype(dtype)
    assert_in_order(rows, values, device, layout)


def test_one_row_that_is_there_many_times_is_added_in_order(device, rng):
    rows = np.where(rng.random(3000) < 0.9, 3, rng.integers(0, 50, 3000))
    assert_in_order(rows, rng.normal(size=(3000, 5)).astype("float32"), device)


def test_rows_of_no_elements_and_no_rows_have_sums_too(device):
    for count, width in ((0, 3), (4, 0), (0, 0)):
        rows, values = np.zeros(count, np.int64), np.zeros((count, width), np.float32)
        own, sums = coalesced(place(rows, device).view, place(values, device).view)
        assert (len(own), sums.shape) == (min(count, 1), (min(count, 1), width))


def test_a_gpu_adds_by_one_launch(emulated, rng):
    rows = place(np.zeros(500, np.int64), "cuda:0").view
    values = place(rng.normal(size=(500, 3)), "cuda:0").view
    emulated.record.launches.clear()
    coalesced(rows, values)
    assert [launch.grid for launch in emulated.record.launches] == [1]
