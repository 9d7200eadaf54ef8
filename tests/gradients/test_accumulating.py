"""Gradients of parts of a batch are added up, all or none of them."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter, flatten
from lucid_gpu.gradients import accumulate
from lucid_gpu.optim import SGD
from tests.gradients.given import host, params
from tests.stepping import place


def test_the_first_gradient_is_a_copy_and_later_ones_are_added_in_place(device):
    (own,) = params([np.zeros(2, "f4")], device)
    own.grad = None
    first = place(np.array([1, 2], "f4"), device).view
    accumulate(own, [first])
    grad = own.grad
    assert grad is not first
    accumulate([own], [first], weight=0.5)
    assert own.grad is grad
    assert (host(grad).tolist(), host(first).tolist()) == ([1.5, 3], [1, 2])


def test_a_weighted_mean_of_parts_is_the_mean_of_the_whole(device, rng):
    samples = rng.normal(size=(10, 3))
    (own,) = params([np.zeros(3)], device)
    own.grad = None
    for part in (samples[:7], samples[7:]):
        mean = place(part.mean(axis=0), device).view
        accumulate(SGD([own]), [mean], weight=len(part) / len(samples))
    np.testing.assert_allclose(host(own.grad), samples.mean(axis=0), rtol=1e-14)


@pytest.mark.parametrize("dtype", ["f2", ml_dtypes.bfloat16])
def test_16_bits_are_added_in_float32_and_rounded_once(device, dtype, rng):
    first, second = rng.normal(size=(2, 1000)).astype(dtype)
    (own,) = params([first], device)
    accumulate(own, [place(second, device).view], weight=0.3)
    share = np.float32(0.3) * second.astype("f4")
    expected = (first.astype("f4") + share).astype(dtype)
    np.testing.assert_array_equal(host(own.grad), expected)
    assert own.grad.dtype == dtype


def test_a_gradient_that_is_none_leaves_its_parameter_alone():
    one, other = params([None, np.ones(3)])
    accumulate([one, other], [None, None])
    assert one.grad is None
    assert other.grad.tolist() == [1, 1, 1]


def test_parts_of_a_flat_parameter_keep_their_place():
    one, other = params([np.ones(3), np.ones(2)])
    flat = flatten([one, other])
    accumulate([one, other], [np.ones(3), np.full(2, 4.0)])
    assert flat.grad.tolist() == [2, 2, 2, 5, 5]


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(ValueError, match="weight must be finite"):
        accumulate(params([np.ones(3)]), [np.ones(3)], weight)


@pytest.mark.parametrize("weight", ["1", None, [1.0]])
def test_a_weight_that_is_no_number_is_refused(weight):
    with pytest.raises(TypeError, match="weight must be a number"):
        accumulate(params([np.ones(3)]), [np.ones(3)], weight)


@pytest.mark.parametrize(
    ("grads", "words"),
    [
        ([np.ones(3)], "grads has 1 elements for 2 parameters"),
        ([np.ones(3), np.ones(4)], "parameter 'b' has shape"),
        ([np.ones(3), np.ones(3, "f4")], "parameter 'b' has dtype float32"),
        ([np.ones(3), [1, 2, 3]], "parameter 'b' is a list"),
    ],
)
def test_gradients_that_do_not_fit_are_named_and_none_is_changed(grads, words):
    own = params([np.ones(3), np.ones(3)])
    with pytest.raises(ValueError, match=words):
        accumulate(own, grads)
    assert own[0].grad.tolist() == [1, 1, 1]


def test_a_frozen_parameter_is_named_and_none_is_changed():
    one, frozen = params([np.ones(3), None])
    frozen.requires_grad = False
    with pytest.raises(ValueError, match="'b' has requires_grad=False"):
        accumulate([one, frozen], [np.ones(3), np.ones(3)])
    assert one.grad.tolist() == [1, 1, 1]


def test_gradients_of_another_device_are_refused(accelerator):
    own = Parameter(np.ones(3))
    with pytest.raises(ValueError, match="has device"):
        accumulate(own, [place(np.ones(3), accelerator).view])
