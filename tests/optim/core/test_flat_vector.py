"""FlatVector: parameters as one vector and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from lucid_gpu import Parameter
from lucid_gpu.optim.core.flat_vector import FlatVector
from lucid_gpu.optim.core.tensors import Tensor
from tests.contract.support import host, trained
from tests.stepping import place


def vector(params):
    return FlatVector([Tensor(i, 0, f"p{i}", p, p.data, None) for i, p in enumerate(params)])


@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), min_size=1),
    layouts=st.lists(st.sampled_from(["C", "F", "strided", "reversed"]), min_size=1),
)
def test_what_is_put_comes_back_in_every_shape_and_layout(shapes, layouts):
    params = [
        Parameter(place(np.zeros(shape), "cpu", layouts[i % len(layouts)]).view)
        for i, shape in enumerate(shapes)
    ]
    own = vector(params)
    elements = np.arange(float(own.size))
    own.put(elements)
    assert own.data().tolist() == elements.tolist()
    flat = [param.data.reshape(-1) for param in params]
    assert np.concatenate(flat).tolist() == elements.tolist()


def test_gradients_are_copied_and_absent_ones_are_zeros(device):
    params = [trained([[1.0], [2.0]], [[3.0], [4.0]], device), Parameter([5.0], device=device)]
    gradient = vector(params).gradient()
    params[0].grad[...] = 0
    assert host(gradient).tolist() == [3.0, 4.0, 0.0]


def test_a_gradient_that_does_not_fit_is_refused_by_name():
    param = trained([1.0], [1.0], "cpu")
    param.__dict__["_grad"] = np.ones(2, np.float32)
    with pytest.raises(ValueError, match=r"gradient of parameter 'p0' has shape \(2,\)"):
        vector([param]).gradient()


def test_parameters_of_two_dtypes_or_devices_are_refused(emulated):
    one = Parameter(np.ones(1, np.float32))
    for other, text in (
        (Parameter(np.ones(1)), "'p1' has dtype float64, but 'p0' has dtype float32"),
        (Parameter([1.0], device="cuda:0"), "'p1' is on cuda:0, but 'p0' is on cpu"),
    ):
        with pytest.raises(ValueError, match=text):
            vector([one, other])


def test_numbers_come_in_one_copy(emulated):
    import cupy

    own = vector([Parameter([1.0], device="cuda:0")])
    emulated.record.downloads.clear()
    assert own.numbers(*cupy.asarray(np.array([1.5, 2.5]))) == [1.5, 2.5]
    assert len(emulated.record.downloads) == 1
