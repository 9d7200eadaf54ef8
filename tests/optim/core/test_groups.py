"""groups: what may be optimized, under which names."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim.core import groups


def test_a_parameter_has_data_and_grad_and_is_no_array():
    assert groups.is_parameter(Parameter([1.0]))
    assert groups.is_parameter(SimpleNamespace(data=1, grad=None))
    assert not groups.is_parameter(SimpleNamespace(data=1))
    assert not groups.is_parameter(np.ones(1))
    assert not groups.is_parameter(np.float32(1))
    assert not groups.is_parameter(Parameter)


def test_options_are_all_but_parameters_names_and_class():
    group = {"params": [], "param_names": [], "optimizer_class": "SGD", "lr": 1, "own": 2}
    assert groups.options(group) == {"lr": 1, "own": 2}


def test_split_tells_loose_parameters_from_groups():
    params, given = [Parameter([1.0]), Parameter([2.0])], [{"params": [1]}, {"params": [2]}]
    assert groups.split(iter(params)) == ([], params)
    assert groups.split(iter(given)) == (given, [])


def test_split_may_be_empty_where_nothing_is_required():
    assert groups.split((), required=False) == ([], [])


def test_normalize_takes_names_from_the_group():
    group = {"params": [Parameter([1.0]), Parameter([2.0])], "param_names": ("w", "b")}
    assert groups.normalize(group, 0)["param_names"] == ["w", "b"]


def test_normalize_drops_a_duplicate_with_its_name():
    param, other = Parameter([1.0]), Parameter([2.0])
    with pytest.warns(UserWarning, match="'again' appears more than once"):
        group = groups.normalize({"params": [("w", param), ("b", other), ("again", param)]}, 0)
    assert group["params"] == [param, other]
    assert group["param_names"] == ["w", "b"]


def test_normalize_numbers_parameters_by_the_index_of_the_group():
    group = groups.normalize({"params": [Parameter([1.0]), Parameter([2.0])]}, 3)
    assert group["param_names"] == ["3.0", "3.1"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["0.0", "0.1"], True), (["7.12"], True), (["0.weight"], False), (["w", "0.1"], False)],
)
def test_positional_names_are_two_numbers(names, expected):
    assert groups.is_positional(names) is expected


def test_named_pairs_each_parameter_with_its_name():
    param = Parameter([1.0])
    assert groups.named({"params": [param], "param_names": ["w"]}) == [("w", param)]


@pytest.mark.parametrize("names", [{}, {"param_names": []}, {"param_names": ["w", "b"]}])
def test_named_refuses_a_list_that_was_edited_without_its_names(names):
    with pytest.raises(ValueError, match=r"1 'params' but \d 'param_names': add parameters with"):
        groups.named({"params": [Parameter([1.0])], **names})


def test_a_warning_points_at_the_caller_outside_the_package():
    with pytest.warns(UserWarning, match="look here") as caught:
        groups.warn_caller("look here")
    assert caught[0].filename == __file__
