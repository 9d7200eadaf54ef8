"""tree: nested values, copied type for type."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest

from lucid_gpu import Parameter, RowGradient
from lucid_gpu.checkpoint import tree as checkpoint_tree
from lucid_gpu.optim.core.tree import MAX_DEPTH, arrays_in, check_depth, copy_tree, is_plain

PLAIN = [None, True, 1, 2.5, 1j, "x", b"x", np.float32(1), [], (), {}, {1: (2, [3])}, np.ones(2)]


class Name(str):
    pass


NOT_PLAIN = [
    object(),
    {1},
    Name("x"),
    OrderedDict(),
    defaultdict(list),
    namedtuple("Pair", "a b")(1, 2),
    np.array([None]),
    np.ma.masked_array([1]),
    np.recarray((1,), dtype=[("x", "f4")]),
    {(1, 2): 3},
    [[{"x": len}]],
]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_data_is_copied(value):
    assert is_plain(value)
    copied = copy_tree(value, np.copy, "x")
    assert type(copied) is type(value)
    assert np.array_equal(copied, value) if isinstance(value, np.ndarray) else copied == value


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_what_is_not_plain_is_refused(value):
    assert not is_plain(value)
    with pytest.raises(TypeError, match="no plain data"):
        copy_tree(value, np.copy, "x")


def test_arrays_are_copied_by_the_given_function():
    assert copy_tree([np.zeros(2)], lambda _: "copied", "x") == ["copied"]


def test_a_parameter_is_copied_with_data_gradient_and_attributes():
    param = Parameter([1.0], name="w", requires_grad=True)
    param.grad = np.ones(1, np.float32)
    twin = copy_tree(param, np.copy, "x")
    assert twin is not param
    assert (twin.name, twin.requires_grad, twin.data.tolist(), twin.grad.tolist()) == (
        "w",
        True,
        [1.0],
        [1.0],
    )
    assert twin.data is not param.data
    assert twin.grad is not param.grad


def test_a_text_parameter_is_copied_with_its_list_of_gradients():
    param = Parameter("hello")
    param.grad = ["louder"]
    twin = copy_tree(param, np.copy, "x")
    twin.grad.append("softer")
    assert (twin.data, param.grad) == ("hello", ["louder"])


def test_the_path_leads_to_the_culprit():
    with pytest.raises(TypeError, match=r"option 'o'\['a'\]\[1\]\[0\] is a object"):
        copy_tree({"a": [1, (object(),)]}, np.copy, "option 'o'")


def test_a_key_that_is_no_plain_data_is_refused_with_its_path():
    with pytest.raises(TypeError, match=r"a key of x\['a'\] is a tuple"):
        copy_tree({"a": {(1,): 2}}, np.copy, "x")


def nested(levels, kind):
    """An array inside so many lists, tuples, dicts or Parameters."""
    value = np.ones(1, np.float32)
    for _ in range(levels):
        value = KINDS[kind](value)
    return value


def text_with_gradient(value):
    param = Parameter("text")
    param.grad = value
    return param


KINDS = {
    "list": lambda value: [value],
    "tuple": lambda value: (1, value),
    "dict": lambda value: {"x": value},
    "Parameter": text_with_gradient,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_levels_are_plain_data(kind):
    value = nested(100, kind)
    assert is_plain(value)
    check_depth(value, "x")
    assert len(list(arrays_in(value))) == 1
    copy_tree(value, np.copy, "x")


@pytest.mark.parametrize("levels", [101, 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_more_levels_are_refused_by_whatever_walks_them(kind, levels):
    value = nested(levels, kind)
    message = "is nested more than 100 levels deep"
    assert isinstance(value, Parameter) or not is_plain(value)
    with pytest.raises(ValueError, match=f"^x {message}"):
        check_depth(value, "x")
    with pytest.raises(ValueError, match=message):
        list(arrays_in(value))
    with pytest.raises(ValueError, match=f"^x.* {message}"):
        copy_tree(value, np.copy, "x")


def test_checkpoints_have_the_same_limit():
    assert checkpoint_tree.MAX_DEPTH == MAX_DEPTH


def test_every_array_of_a_nested_value_is_found():
    param = Parameter(np.ones(2, np.float32))
    param.grad = np.ones(2, np.float32)
    loose = np.ones(3)
    value = {"a": [1, (loose, None)], "b": param, "c": "text"}
    found = list(arrays_in(value))
    assert [id(array) for array in found] == [id(loose), id(param.data), id(param.grad)]


@pytest.mark.parametrize("value", NOT_PLAIN, ids=lambda value: type(value).__name__)
def test_no_array_is_found_in_what_is_no_plain_data(value):
    assert list(arrays_in(value)) == []


def test_gradients_of_rows_are_copied_with_their_parameter():
    param = Parameter(np.ones((3, 2)))
    param.grad = RowGradient([0, 2], np.ones((2, 2)))
    assert [array.shape for array in arrays_in(param)] == [(3, 2), (2,), (2, 2)]
    twin = copy_tree(param, np.copy, "slot")
    twin.grad.values[...] = 5
    assert twin.grad.rows.tolist() == [0, 2]
    assert param.grad.values.tolist() == [[1, 1], [1, 1]]
