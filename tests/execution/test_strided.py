"""Tensors that are not contiguous: axes merged, and one launch each."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.device import transfer
from lucid_gpu.execution import plan, strided
from lucid_gpu.execution.strided import merge_axes
from lucid_gpu.optim import SGD
from tests import rules
from tests.emulation.compiler import Compiler
from tests.execution.claims import compiles, layout_claims
from tests.stepping import host, place

every_rule = pytest.mark.parametrize("rule", rules.rules(), ids=lambda rule: rule.__name__)
every_dtype = pytest.mark.parametrize("dtype", rules.DTYPES)


@every_rule
@every_dtype
def test_records_lie_as_the_structs_of_the_kernel(rule, dtype):
    claims = []
    for variant in rules.variants(rule):
        storage = rules.storage(rule, dtype)
        record = strided.tensor_record(rule.rule, variant, storage)
        assert record.itemsize <= 4096  # what a launch takes
        functor = plan.functor(rule.rule, variant, dtype)
        arrays = 2 + len(storage.used(rule.rule, variant))
        claims += layout_claims(record, f"StridedTensor<{functor}, {plan.c_type(dtype)}, {arrays}>")
        claims += layout_claims(record["array"].base, "Strides")
        if rule.sums:
            own = plan.c_type(dtype)
            sums = strided.sums_record(record)
            assert sums.itemsize <= 4096
            claims += layout_claims(sums, f"StridedSums<{functor}, {own}, {own}>")
    compiles(rule, [*claims, f"kMaxRank == {strided.MAX_RANK}"])


LOCATE = """
extern "C" long long locate(const void* tensor, unsigned long long index, int array, bool wide) {
  using Tensor = StridedTensor<FUNCTOR>;
  const Tensor& own = *static_cast<const Tensor*>(tensor);
  char* place[sizeof(own.array) / sizeof(Strides)];
  if (wide)
    own.locate(index, place);
  else
    own.locate(static_cast<unsigned>(index), place);
  return place[array] - own.array[array].data;
}
"""


@pytest.fixture(scope="module")
def locate():
    """What the kernel makes of an index: the offset of an element, in one of two arrays."""
    variant = rules.variants(SGD)[0]
    functor = plan.functor(SGD.rule, variant, "float32")
    text = LOCATE.replace("FUNCTOR", f"{functor}, float, 2")
    library = ctypes.CDLL(str(Compiler().library(strided.source(SGD.rule), {"locate": text})))
    library.locate.restype = ctypes.c_longlong
    record = strided.tensor_record(SGD.rule, variant, rules.storage(SGD, "float32"))

    def offset(extents, strides, index, array, wide):
        tensor = np.zeros((), record)
        tensor["rank"] = len(extents)
        tensor["extent"][: len(extents)] = extents
        tensor["array"]["stride"][:, : len(extents)] = strides
        arguments = ctypes.c_ulonglong(index), array, wide
        return library.locate(ctypes.c_void_p(tensor.ctypes.data), *arguments)

    return offset


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 10**6), st.data())
def test_an_index_is_found_in_c_order(locate, extents, seed, data):
    index = data.draw(st.integers(0, int(np.prod(extents)) - 1))
    strides = np.random.default_rng(seed).integers(-(2**40), 2**40, (2, len(extents)))
    expected = strides @ np.array(np.unravel_index(index, extents))
    for array in (0, 1):
        for wide in (False, True):
            assert locate(extents, strides, index, array, wide) == expected[array]


def test_an_index_beyond_32_bits_is_found(locate):
    strides = [[12, 60, 4], [8, 24, -8]]
    index = 2 * (5 << 32) + 7 * 5 + 3
    assert locate([3, 1 << 32, 5], strides, index, 0, wide=True) == 2 * 12 + 7 * 60 + 3 * 4
    assert locate([3, 1 << 32, 5], strides, index, 1, wide=True) == 2 * 8 + 7 * 24 - 3 * 8


@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_indices_of_64_bits_do_what_those_of_32_do(emulated, monkeypatch, rule):
    """One chunk of a tensor that says it has 2³² elements more."""
    results = []
    for more in (0, 1 << 32):
        arrays = [transfer.copy(np.arange(8192, dtype="f4"), "cuda:0") for _ in range(2)]
        param, grad = (array.reshape(128, 64).T[:, ::2] for array in arrays)
        own = Parameter(param)
        own.grad = grad
        lay_out = strided._Launch._lay_out

        def further(launch, shape, strides, lay_out=lay_out, more=more):
            lay_out(launch, shape, strides)
            launch._argument["size"] += more

        with monkeypatch.context() as patch:
            patch.setattr(strided._Launch, "_lay_out", further)
            rule([own]).step()
        results.append(host(arrays[0]))
    np.testing.assert_array_equal(*results)
    assert (results[0] != np.arange(8192)).any()


def test_gradients_of_other_strides_at_each_step_are_read_where_they_lie(accelerator, rng):
    values, *grads = rng.normal(size=(5, 6, 4)).astype("f4")
    results = []
    for device in (accelerator, "cpu"):
        param = Parameter(place(values, device, "strided").view)
        optimizer = SGD([param], lr=0.5)
        for grad, layout in zip(grads, ("C", "F", "strided", "reversed"), strict=True):
            param.grad = place(grad, device, layout).view
            optimizer.step()
        results.append(param.numpy())
    np.testing.assert_array_equal(*results)


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
