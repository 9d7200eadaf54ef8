"""slots: where in memory they begin."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device.arrays import address
from lucid_gpu.optim import Adam
from lucid_gpu.optim.core.slots import LARGE_BYTES, PAGE_BYTES

LARGE = (257, LARGE_BYTES // 4 // 256)


def trained(order="C", dtype=np.float32):
    param = Parameter(np.ones(LARGE, dtype, order=order))
    param.grad = np.full(LARGE, 0.5, dtype, order=order)
    optimizer = Adam([param], amsgrad=True)
    optimizer.step()
    return optimizer, param


def slots(optimizer, param):
    return [optimizer.state[param][name] for name in optimizer.slots]


def reloaded(optimizer, param):
    other = Adam([param], amsgrad=True)
    other.load_state_dict(optimizer.state_dict())
    return other


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("is_loaded", [False, True])
def test_large_slots_begin_elsewhere_in_a_page_than_each_other(order, dtype, is_loaded):
    optimizer, param = trained(order, dtype)
    if is_loaded:
        optimizer = reloaded(optimizer, param)
    own = slots(optimizer, param)
    places = sorted(array.ctypes.data % PAGE_BYTES for array in (param.data, *own))
    gaps = np.diff([*places, places[0] + PAGE_BYTES])
    assert gaps.min() >= PAGE_BYTES // 4 - 64
    assert all(array.ctypes.data % 64 == 0 for array in own)
    assert all(array.flags[f"{order}_CONTIGUOUS"] for array in own)
    assert all(array.shape == param.shape and array.dtype == dtype for array in own)


def test_a_loaded_slot_has_the_values_that_were_saved():
    optimizer, param = trained()
    for ours, theirs in zip(
        slots(reloaded(optimizer, param), param), slots(optimizer, param), strict=True
    ):
        assert not np.shares_memory(ours, theirs)
        np.testing.assert_array_equal(ours, theirs)


def test_slots_of_large_views_are_dense():
    whole = np.ones((600, 200), np.float32)
    param = Parameter(whole[::2])
    param.grad = np.ones_like(param.data)
    optimizer = Adam([param])
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].flags.c_contiguous


def test_small_slots_on_a_gpu_begin_where_a_vector_may_be_loaded(accelerator):
    for dtype in (np.float32, np.float64):
        params = [Parameter(np.ones(size, dtype), device=accelerator) for size in (3, 5, 1, 4, 2)]
        for param in params:
            param.grad = param.data
        optimizer = Adam(params)
        optimizer.step()
        own = [optimizer.state[param]["exp_avg"] for param in params]
        assert {address(array) % 16 for array in own} == {address(own[0]) % 16}
