"""RowGradient: what it takes, and where a Parameter and others take it."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter, RowGradient, flatten, optim
from tests import array_rules, rules
from tests.conftest import installed
from tests.contract.support import Foreign, array, host, trained, unchanged
from tests.stepping import place


def some(device="cpu", rows=(2, 0, 2), width=2, dtype=np.float32):
    """A gradient whose values are 1, 2, 3, …"""
    values = np.arange(1, len(rows) * width + 1, dtype=dtype).reshape(len(rows), width)
    own = np.array(rows, np.int64)
    return RowGradient(array(own, device, np.int64), array(values, device, dtype))


def test_coalesced_has_every_row_once(device):
    rows, values = some(device).coalesced()
    assert (host(rows).tolist(), host(values).tolist()) == ([0, 2], [[3, 4], [6, 8]])


def test_dense_is_zero_but_for_its_rows(device):
    dense = some(device).dense((4, 2))
    assert host(dense).tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    assert dense.dtype == np.float32


@pytest.mark.parametrize("rows", [[1, 0], (1, 0), np.array([1, 0], np.int32), np.uint8([1, 0])])
def test_rows_may_be_any_whole_numbers(rows):
    gradient = RowGradient(rows, np.ones((2, 1)))
    assert gradient.rows.tolist() == [1, 0]


def test_no_rows_are_a_gradient_too():
    gradient = RowGradient([], np.ones((0, 3)))
    assert len(gradient) == 0
    assert gradient.dense((2, 3)).tolist() == [[0] * 3] * 2


WRONG = [
    ([0.5], np.ones((1, 2)), TypeError, r"whole numbers of shape \(k,\), not of dtype float64"),
    ([[0]], np.ones((1, 2)), TypeError, r"not of dtype int64 and shape \(1, 1\)"),
    ([True], np.ones((1, 2)), TypeError, "not of dtype bool"),
    ([0], [[1.0, 2.0]], TypeError, "must be a NumPy or CuPy array, not list"),
    ([0], np.ones((1, 2), np.int32), TypeError, "have dtype int32: use float32 or float64"),
    ([0, 1], np.ones((1, 2)), ValueError, r"has 2 rows, but values of shape \(1, 2\)"),
    ([0], np.array(1.0), ValueError, r"has 1 rows, but values of shape \(\)"),
]


@pytest.mark.parametrize(("rows", "values", "error", "text"), WRONG)
def test_what_is_no_gradient_of_rows_is_refused(rows, values, error, text):
    with pytest.raises(error, match=text):
        RowGradient(rows, values)


def test_rows_elsewhere_than_values_are_refused(emulated):
    with pytest.raises(ValueError, match=r"rows of a RowGradient are on cpu, its values on cuda:0"):
        RowGradient(np.array([0]), array([[1.0]], "cuda:0"))


def test_it_moves_copies_and_pickles(accelerator):
    gradient = some()
    there = gradient.to(accelerator)
    assert there.device == accelerator
    assert host(there.values).tolist() == gradient.values.tolist()
    for twin in (there.to("cpu"), copy.deepcopy(gradient), pickle.loads(pickle.dumps(gradient))):
        assert twin.values.tolist() == gradient.values.tolist()
    assert repr(there) == f"RowGradient(3 rows of shape (2,) on {accelerator})"


MISFITS = [
    (some(width=3), r"has values of shape \(3, 3\), but for its parameter it must .* \(3, 2\)"),
    (some(dtype=np.float64), r"has dtype float64, but .* float32: cast with .astype\('float32'\)"),
]


@pytest.mark.parametrize(("gradient", "text"), MISFITS, ids=["shape", "dtype"])
def test_a_parameter_takes_only_what_fits(gradient, text):
    param = Parameter(np.ones((4, 2), np.float32), name="table")
    with pytest.raises(ValueError, match=f"grad of parameter 'table' {text}"):
        param.grad = gradient
    assert param.grad is None


def test_a_number_and_a_text_have_no_rows():
    with pytest.raises(ValueError, match="has rows, but the parameter has no dimensions"):
        Parameter(1.0).grad = some()
    with pytest.raises(TypeError, match="is text, which has no rows"):
        Parameter("word").grad = some()


def test_a_parameter_moves_with_it(accelerator):
    param = Parameter(np.ones((4, 2), np.float32))
    param.grad = some()
    param.to(accelerator)
    assert param.grad.device == accelerator


def test_flat_parameters_have_dense_gradients():
    param = Parameter(np.ones((4, 2), np.float32), name="table")
    param.grad = some()
    with pytest.raises(ValueError, match="element 0 of params has a gradient of rows"):
        flatten([param])
    param.grad = None
    flatten([param])
    text = r"'table' is part of a flat parameter, .* give gradient\.dense\(param"
    with pytest.raises(ValueError, match=text):
        param.grad = some()


OTHERS = [
    *rules.optimizers(),
    *(rule for rule in array_rules.optimizers() if rule is not optim.SparseAdam),
]


def assert_refused(rule, device, layout="C"):
    """Step with dense gradients, of which one becomes one of rows."""
    params = [trained(np.ones((4, 2)), np.ones((4, 2)), device, name=f"p{i}") for i in range(2)]
    params[1].grad = place(np.ones((4, 2), np.float32), device, layout).view
    optimizer = rule(params)
    optimizer.step(lambda: 0.0)
    params[1].grad = some(device)
    text = "gradient of parameter 'p1' is a RowGradient, which only SparseAdam takes: give a dense"
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("rule", OTHERS, ids=lambda rule: rule.__name__)
def test_other_optimizers_refuse_it_before_anything_was_changed(rule):
    assert_refused(rule, "cpu")


@pytest.mark.parametrize("layout", ["C", "strided"])
@pytest.mark.parametrize("rule", [optim.Adam, optim.Adafactor, optim.LBFGS])
def test_so_do_they_where_kernels_and_array_code_step(rule, layout, accelerator):
    assert_refused(rule, accelerator, layout)


def test_so_does_compiled_code():
    with installed("compiled") as device:
        assert_refused(optim.Adam, device)


def test_a_graph_that_was_captured_refuses_it(emulated):
    import cupy

    param = trained(np.ones((4, 2)), np.ones((4, 2)), "cuda:0", name="p")
    optimizer = optim.Adam([param])
    optimizer.step()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        optimizer.step()
        stream.end_capture()
    param.grad = some("cuda:0")
    with unchanged(optimizer), pytest.raises(ValueError, match="which only SparseAdam takes"):
        optimizer.before_replay()


def test_so_do_they_of_a_parameter_of_another_library(device):
    foreign = Foreign(array([[1.0, 2.0]], device), some(device, rows=(0,)))
    optimizer = optim.Adam([foreign])
    with pytest.raises(ValueError, match="is a RowGradient, which only SparseAdam takes"):
        optimizer.step()
    assert host(foreign).tolist() == [[1.0, 2.0]]


def test_zeroing_in_place_says_what_to_do():
    param = Parameter(np.ones((4, 2), np.float32), name="table")
    param.grad = some()
    optimizer = optim.SparseAdam([param])
    with pytest.raises(TypeError, match="'table' is a RowGradient that cannot be"):
        optimizer.zero_grad(set_to_none=False)
    optimizer.zero_grad()
    assert param.grad is None
