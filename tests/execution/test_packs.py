"""Small tensors are stepped together on the CPU, which does not show in the result."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.execution import packs, twin
from lucid_gpu.optim import SGD, Adam

LAYOUTS = ("C", "F", "strided")


def laid_out(values, layout):
    if layout == "strided":
        whole = np.zeros([2 * extent for extent in values.shape], values.dtype)
        view = whole[(..., *(slice(None, None, 2) for _ in values.shape))]
        view[...] = values
        return view
    return np.array(values, order=layout)


def trained(shapes, layouts=("C", "C"), groups=1, steps=3, dtype=np.float32, kind=Adam):
    """Return the parameters after some steps, each as a C-ordered copy."""
    draw = np.random.default_rng(3)
    values = [[draw.standard_normal(s).astype(dtype) for s in shapes] for _ in range(steps + 1)]
    params = [Parameter(laid_out(value, layouts[0])) for value in values[0]]
    optimizer = kind([{"params": params[g::groups], "lr": 0.1 + g} for g in range(groups)])
    for grads in values[1:]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = laid_out(grad, layouts[1])
        optimizer.step()
    return [np.array(param.data, order="C") for param in params]


def one_by_one(shapes, **options):
    """Return the same, with nothing packed and each block stepped alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "PACKED_ELEMENTS", -1)
        patch.setenv("LUCID_GPU_NUM_THREADS", "1")
        return trained(shapes, **options)


def same(ours, theirs):
    return [a.tobytes() for a in ours] == [b.tobytes() for b in theirs]


shapes = st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(shapes, st.sampled_from(LAYOUTS), st.sampled_from(LAYOUTS), st.integers(1, 3))
def test_packing_does_not_show_in_the_bits(shapes, own, grad, groups):
    groups = min(groups, len(shapes))
    expected = one_by_one(shapes, groups=groups)
    assert same(trained(shapes, (own, grad), groups), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_pack_ends_where_a_block_is_full(dtype, monkeypatch):
    expected = one_by_one([(5,)] * 20, dtype=dtype)
    monkeypatch.setattr(twin, "BLOCK_ELEMENTS", 12)
    monkeypatch.setattr(packs, "PACKED_ELEMENTS", 6)
    monkeypatch.setattr(twin, "_local", threading.local())
    assert same(trained([(5,)] * 20, dtype=dtype), expected)


def test_new_slots_of_small_tensors_lie_side_by_side():
    params = [Parameter(np.zeros(n, np.float32)) for n in (3, 5000, 4)]
    for param in params:
        param.grad = np.ones_like(param.data)
    optimizer = Adam(params)
    optimizer.step()
    first, large, last = (optimizer.state[param]["exp_avg"] for param in params)
    assert last.ctypes.data == first.ctypes.data + first.nbytes
    assert large.base is None


def test_slots_that_lie_elsewhere_are_stepped_too():
    def three_steps(scatter):
        params = [Parameter(np.full(n, 2.0, np.float32)) for n in (3, 4, 5)]
        optimizer = SGD(params, lr=0.1, momentum=0.9)
        for _ in range(3):
            for param in params:
                param.grad = param.data.copy()
            optimizer.step()
            if scatter:
                optimizer.load_state_dict(optimizer.state_dict())
        return [param.data for param in params]

    assert same(three_steps(scatter=True), three_steps(scatter=False))


def test_neighbours_that_are_views_of_different_arrays_are_stepped_too():
    memory = np.arange(1, 13, dtype=np.float32)
    pieces = [np.frombuffer(memory, np.float32, 4, offset).reshape(2, 2) for offset in (0, 16, 32)]
    params = [Parameter(piece) for piece in pieces]
    for param in params:
        param.grad = np.ones((2, 2), np.float32)
    optimizer = SGD(params, lr=1.0)
    for _ in range(2):
        optimizer.step()
    assert memory.tolist() == list(range(-1, 11))


def test_parts_of_one_array_that_are_no_neighbours_are_stepped_too():
    memory = np.arange(1, 13, dtype=np.float32)
    params = [Parameter(memory[start : start + 3]) for start in (8, 4, 0)]
    for param in params:
        param.grad = np.ones(3, np.float32)
    SGD(params, lr=1.0).step()
    assert memory.tolist() == [0, 1, 2, 4, 4, 5, 6, 8, 8, 9, 10, 12]


@pytest.mark.parametrize("first", [0, 2])
def test_neighbours_from_the_middle_of_an_array_leave_the_rest_alone(first):
    memory = np.ones(12, np.float32)
    params = [Parameter(memory[first + i : first + i + 3]) for i in (0, 3)]
    for param in params:
        param.grad = np.ones(3, np.float32)
    SGD(params, lr=1.0).step()
    assert np.flatnonzero(memory == 0).tolist() == list(range(first, first + 6))


def test_neighbours_that_are_columns_of_fortran_order_are_stepped_too():
    memory = np.arange(1, 13, dtype=np.float32).reshape(4, 3, order="F")
    params = [Parameter(memory[:, column]) for column in range(3)]
    for param in params:
        param.grad = np.ones(4, np.float32)
    SGD(params, lr=1.0).step()
    assert memory.ravel("F").tolist() == list(range(12))


def test_neighbours_that_see_an_array_as_another_dtype_are_stepped_too():
    memory = np.zeros(6)
    params = [Parameter(memory[i : i + 3].view(np.float32)) for i in (0, 3)]
    for param in params:
        param.grad = np.ones(6, np.float32)
    SGD(params, lr=1.0).step()
    assert memory.view(np.float32).tolist() == [-1.0] * 12
