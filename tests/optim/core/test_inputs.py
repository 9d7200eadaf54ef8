"""Inputs: what is seen to have changed since the last step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim.core.inputs import Inputs, notes_changes


def own(value=1.0):
    return Parameter([value])


def foreign(value=1.0):
    """A parameter of another library; two of them are equal, as SimpleNamespaces are."""
    return SimpleNamespace(data=np.array([value], np.float32), grad=None)


every_kind = pytest.mark.parametrize("make", [own, foreign])


def group(params, **options):
    return {"params": params, "param_names": [f"p{i}" for i in range(len(params))], **options}


def gradient():
    return np.ones(1, np.float32)


@every_kind
def test_the_same_groups_are_the_same(make):
    groups = [group([make(), make()]), group([make()])]
    assert Inputs(groups, []).has_same_groups(groups)


@every_kind
def test_a_parameter_that_takes_the_place_of_its_equal_is_another(make):
    groups = [group([make(), make()])]
    inputs = Inputs(groups, [])
    groups[0]["params"][1] = make()
    assert not inputs.has_same_groups(groups)


@every_kind
def test_parameters_that_change_places_are_others(make):
    groups = [group([make(), make()])]
    inputs = Inputs(groups, [])
    groups[0]["params"].reverse()
    assert not inputs.has_same_groups(groups)


@every_kind
@pytest.mark.parametrize("change", [list.pop, lambda params: params.append(params[0])])
def test_a_list_of_parameters_of_another_length_is_another(make, change):
    groups = [group([make(), make()])]
    inputs = Inputs(groups, [])
    change(groups[0]["params"])
    assert not inputs.has_same_groups(groups)


@every_kind
def test_parameters_that_compare_element_by_element_are_compared_by_identity(make):
    class Elementwise(SimpleNamespace):
        def __eq__(self, other):
            return self.data == other.data

        __hash__ = None

    groups = [group([Elementwise(data=np.ones(2), grad=None), make()])]
    assert Inputs(groups, []).has_same_groups(groups)


def test_a_copy_of_a_group_is_another_group():
    groups = [group([own()], lr=1.0)]
    assert not Inputs(groups, ["lr"]).has_same_groups([dict(groups[0])])


def test_a_group_more_or_less_is_seen():
    groups = [group([own()]), group([own()])]
    inputs = Inputs(groups, [])
    assert not inputs.has_same_groups(groups[:1])
    assert not inputs.has_same_groups([*groups, group([own()])])


def test_each_parameter_has_the_number_of_its_group():
    groups = [group([own(), own()]), group([own()])]
    assert Inputs(groups, []).group_of.tolist() == [0, 0, 1]


def test_an_option_of_any_group_is_seen_to_change_until_it_is_accepted():
    groups = [group([own()], lr=1.0), group([own()], lr=1.0)]
    inputs = Inputs(groups, ["lr"])
    assert not inputs.options_changed()
    groups[1]["lr"] = 2.0
    assert inputs.options_changed()
    assert inputs.options_changed()
    inputs.accept_options()
    assert not inputs.options_changed()


def test_an_option_of_the_users_own_does_not_count():
    groups = [group([own()], lr=1.0, note=1)]
    inputs = Inputs(groups, ["lr"])
    groups[0]["note"] = 2
    assert not inputs.options_changed()


@every_kind
def test_data_that_was_replaced_is_told_once(make):
    params = [make(), make(), make()]
    inputs = Inputs([group(params)], [])
    assert inputs.take_data() == []
    for number in (0, 2):
        params[number].data = params[number].data.copy()
    assert inputs.take_data() == [0, 2]
    assert inputs.take_data() == []
    assert all(seen is param.data for seen, param in zip(inputs.data, params, strict=True))


def test_data_that_comes_back_is_another_again():
    param = own()
    inputs = Inputs([group([param])], [])
    first = param.data
    for array in (first.copy(), first):
        param.data = array
        assert inputs.take_data() == [0]


def test_a_gradient_that_was_set_is_told_once():
    param = own()
    inputs = Inputs([group([param])], [])
    assert not inputs.gradients_may_have_moved()
    param.grad = gradient()
    assert inputs.gradients_may_have_moved()
    assert not inputs.gradients_may_have_moved()


def test_gradients_of_others_may_always_have_moved():
    inputs = Inputs([group([own()]), group([foreign()])], [])
    assert inputs.gradients_may_have_moved()
    assert inputs.gradients_may_have_moved()


def test_looking_at_data_forgets_no_gradient():
    param = own()
    inputs = Inputs([group([param])], [])
    param.grad, param.data = gradient(), param.data.copy()
    assert inputs.take_data() == [0]
    assert inputs.gradients_may_have_moved()


def test_looking_at_gradients_forgets_no_data():
    param = own()
    inputs = Inputs([group([param])], [])
    param.grad, param.data = gradient(), param.data.copy()
    assert inputs.gradients_may_have_moved()
    assert inputs.take_data() == [0]


class OwnGrad(Parameter):
    """A Parameter whose gradient is kept elsewhere."""

    grad = None


class OwnData(Parameter):
    """A Parameter whose data is worked out."""

    data = property(lambda self: self._data * 1)


@pytest.mark.parametrize("kind", [OwnGrad, OwnData])
def test_a_parameter_with_properties_of_its_own_notes_no_changes(kind):
    assert notes_changes(own())
    assert not notes_changes(kind([1.0]))
    assert not Inputs([group([own(), kind([1.0])])], []).are_own
