"""Section 2 of docs/contract.md: construction and groups."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu
from tests.contract.support import (
    Foreign,
    MyOptimizer,
    array,
    picture,
    trained,
    unchanged,
    values,
)

RULES = [optim.SGD, optim.Adam, optim.AdamW]


def test_the_base_class_cannot_be_made():
    """Row 1 of docs/contract.md."""
    with pytest.raises(TypeError, match=r"Optimizer is abstract.*step"):
        optim.Optimizer([Parameter([1.0])], {})


def test_a_subclass_without_step_raises_when_stepped():
    """Row 1 of docs/contract.md."""

    class Idle(optim.Optimizer):
        pass

    with pytest.raises(NotImplementedError, match="Idle must define step"):
        Idle([Parameter([1.0])], {}).step()


def test_super_step_raises():
    """Row 1 of docs/contract.md."""

    class Lazy(optim.Optimizer):
        def step(self, closure=None):
            return super().step(closure)

    with pytest.raises(NotImplementedError, match="Lazy must define step"):
        Lazy([Parameter([1.0])], {}).step()


def test_the_custom_optimizer_of_lucid_runs_unchanged(device):
    """Row 2 of docs/contract.md."""
    params = [trained([1.0, 2.0], [0.5, 1.0], device), Parameter([3.0], device=device)]
    MyOptimizer(params, lr=0.5).step()
    assert [values(param) for param in params] == [[0.75, 1.5], [3.0]]


def test_param_groups_setup_returns_one_group():
    """Row 3 of docs/contract.md."""
    param, other = Parameter([1.0]), Parameter([2.0])
    optimizer = MyOptimizer([param], lr=0.5)
    assert optimizer.param_groups_setup([other], {"lr": 0.1, "own": "x"}) == [
        {"params": [other], "lr": 0.1, "own": "x"}
    ]
    assert optimizer.param_groups[0]["params"] == [param]


def test_param_groups_setup_keeps_names_that_were_given():
    """Rows 3 and 8 of docs/contract.md."""
    param = Parameter([1.0])
    optimizer = MyOptimizer([Parameter([2.0])])
    assert optimizer.param_groups_setup([("w", param)], {}) == [
        {"params": [param], "param_names": ["w"]}
    ]


def test_a_subclass_can_group_parameters_otherwise():
    """Row 3 of docs/contract.md."""

    class NoDecayOfBiases(MyOptimizer):
        def param_groups_setup(self, params, defaults):
            (group,) = super().param_groups_setup(params, defaults)
            return [{**group, "params": [p], "decay": p.data.ndim > 1} for p in group["params"]]

    weight, bias = Parameter([[1.0]]), Parameter([2.0])
    optimizer = NoDecayOfBiases([weight, bias], lr=0.5)
    assert [(g["params"], g["decay"], g["lr"]) for g in optimizer.param_groups] == [
        ([weight], True, 0.5),
        ([bias], False, 0.5),
    ]


@pytest.mark.parametrize("params", [3, None, 1.5, "w", b"w"])
def test_params_that_are_no_collection_are_refused(params):
    """Row 4 of docs/contract.md."""
    with pytest.raises(TypeError, match="params must be an iterable.*not " + type(params).__name__):
        optim.SGD(params)


def test_a_bare_parameter_is_refused_with_the_remedy(device):
    """Row 4 of docs/contract.md."""
    with pytest.raises(TypeError, match=r"single Parameter: pass a list, \[it\]"):
        optim.SGD(Parameter([1.0], device=device))


def test_a_bare_array_is_refused_with_the_remedy(device):
    """Row 4 of docs/contract.md."""
    with pytest.raises(TypeError, match=r"single ndarray: pass a list, \[it\]"):
        optim.SGD(array([1.0], device))


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_is_refused_because_it_has_no_order(kind):
    """Row 4 of docs/contract.md."""
    with pytest.raises(TypeError, match="set, which has no deterministic order: pass a list"):
        optim.SGD(kind([Parameter([1.0])]))


def test_an_element_that_is_no_parameter_is_named_by_position_and_type(device):
    """Row 4 of docs/contract.md."""
    with pytest.raises(TypeError, match="element 1 of parameter group 0 is a ndarray"):
        optim.SGD([Parameter([1.0], device=device), array([1.0], device)])


@pytest.mark.parametrize("rule", RULES)
def test_hyperparameters_are_checked_before_params_are_iterated(rule):
    """Row 4 of docs/contract.md."""
    touched = []

    def params():
        touched.append(True)
        yield Parameter([1.0])

    with pytest.raises(ValueError, match="lr must be >= 0, not -1"):
        rule(params(), lr=-1)
    assert not touched


@pytest.mark.parametrize("rule", RULES)
def test_an_object_with_data_and_grad_trains_without_an_adapter(device, rule):
    """Row 4 of docs/contract.md."""
    foreign = Foreign(array([1.0, 2.0], device), array([0.5, -0.5], device))
    own = trained([1.0, 2.0], [0.5, -0.5], device)
    rule([foreign], lr=0.1).step()
    rule([own], lr=0.1).step()
    assert values(foreign) == values(own) != [1.0, 2.0]


def test_an_object_whose_gradient_array_changes_every_step_trains(device):
    """Row 4 of docs/contract.md."""
    foreign, own = Foreign(array([1.0], device)), Parameter([1.0], device=device)
    optimizers = [optim.Adam([foreign], lr=0.1), optim.Adam([own], lr=0.1)]
    for gradient in (1.0, -2.0, 0.5):
        foreign.grad = array([gradient], device)
        own.grad = array([gradient], device)
        for optimizer in optimizers:
            optimizer.step()
    assert values(foreign) == values(own)


def test_an_object_that_compares_elementwise_trains(device):
    """Row 4 of docs/contract.md."""

    class Elementwise(Foreign):
        def __eq__(self, other):
            return self.data == other.data

        __hash__ = None

    foreign = Elementwise(array([1.0, 2.0], device), array([1.0, 1.0], device))
    optimizer = optim.SGD([foreign], lr=0.5, momentum=0.9)
    optimizer.step()
    optimizer.step()
    assert optimizer.state[foreign]["step"] == 2


def test_a_duplicate_in_a_group_warns_and_is_updated_once(device):
    """Row 5 of docs/contract.md."""
    param = trained([1.0], [1.0], device, name="w")
    with pytest.warns(UserWarning, match="'w' appears more than once.*updated once") as caught:
        optimizer = optim.SGD([param, param], lr=0.5)
    assert caught[0].filename == __file__
    optimizer.step()
    assert values(param) == [0.5]
    assert optimizer.param_groups[0]["param_names"] == ["w"]


def test_a_parameter_in_two_groups_is_refused_by_name():
    """Row 5 of docs/contract.md."""
    param = Parameter([1.0], name="w")
    with pytest.raises(ValueError, match="'w' is already in parameter group 0"):
        optim.SGD([{"params": [param]}, {"params": [param]}])


def test_add_param_group_fills_options_from_the_defaults():
    """Row 6 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])], lr=0.5)
    optimizer.add_param_group({"params": [Parameter([2.0])], "eps": 0.25})
    assert optimizer.param_groups[1]["lr"] == 0.5
    assert optimizer.param_groups[1]["eps"] == 0.25


def test_add_param_group_keeps_unknown_keys():
    """Row 6 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])])
    optimizer.add_param_group({"params": [Parameter([2.0])], "initial_lr": 3})
    assert optimizer.param_groups[1]["initial_lr"] == 3


def test_add_param_group_never_changes_the_callers_dict():
    """Row 6 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])])
    params = [Parameter([2.0])]
    group = {"params": params, "lr": 0.5}
    optimizer.add_param_group(group)
    optimizer.param_groups[1]["lr"] = 9
    optimizer.param_groups[1]["params"].append(Parameter([3.0]))
    assert group == {"params": params, "lr": 0.5}
    assert len(params) == 1


def test_add_param_group_keeps_the_identity_of_the_list():
    """Row 6 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])])
    groups, first = optimizer.param_groups, optimizer.param_groups[0]
    optimizer.add_param_group({"params": [Parameter([2.0])]})
    assert optimizer.param_groups is groups
    assert groups[0] is first


def test_add_param_group_takes_any_ordered_iterable():
    """Row 6 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])])
    more = [Parameter([2.0]), Parameter([3.0])]
    optimizer.add_param_group({"params": iter(more)})
    assert optimizer.param_groups[1]["params"] == more


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": 0.1}, "group 1 has no 'params'"),
        ({"params": []}, "'params' of parameter group 1 is empty"),
        ({"params": iter(())}, "'params' of parameter group 1 is empty"),
    ],
)
def test_add_param_group_needs_parameters(group, message):
    """Row 6 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])])
    with unchanged(optimizer), pytest.raises(ValueError, match=message):
        optimizer.add_param_group(group)


def test_add_param_group_refuses_an_overlap():
    """Row 6 of docs/contract.md."""
    param = Parameter([1.0], name="w")
    optimizer = optim.Adam([param])
    with unchanged(optimizer), pytest.raises(ValueError, match="'w' is already in"):
        optimizer.add_param_group({"params": [Parameter([2.0], name="b"), param]})


def test_add_param_group_checks_the_options_of_the_group():
    """Rows 6 and 10 of docs/contract.md."""
    optimizer = optim.Adam([Parameter([1.0])])
    with unchanged(optimizer), pytest.raises(ValueError, match="eps must be >= 0, not -2"):
        optimizer.add_param_group({"params": [Parameter([2.0])], "eps": -2})


def test_add_param_group_leaves_the_state_of_the_others(device):
    """Row 6 of docs/contract.md."""
    old, new = trained([1.0], [1.0], device), trained([2.0], [1.0], device)
    optimizer = optim.Adam([old])
    optimizer.step()
    before = picture(dict(optimizer.state[old]))
    optimizer.add_param_group({"params": [new]})
    assert picture(dict(optimizer.state[old])) == before
    optimizer.step()
    assert [optimizer.state[param]["step"] for param in (old, new)] == [2, 1]


@pytest.mark.parametrize("rule", RULES)
def test_an_edited_learning_rate_takes_effect_at_the_next_step(device, rule):
    """Row 7 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = rule([param])
    optimizer.step()
    before = values(param)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert values(param) == before


def test_an_edited_learning_rate_reaches_strided_arrays(device):
    """Row 7 of docs/contract.md."""
    whole = array([[1.0, 9.0], [2.0, 9.0]], device)
    param = Parameter(whole[:, 0])
    param.grad = array([1.0, 1.0], device)
    optimizer = optim.SGD([param], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert values(param) == [0.25, 1.25]


def captured(optimizer):
    """Step once, record a step, and return the stream and the graph."""
    stream = gpu.cupy().cuda.Stream(non_blocking=True)
    with stream:
        optimizer.step()
        stream.begin_capture()
        optimizer.step()
        return stream, stream.end_capture()


@pytest.mark.usefixtures("emulated")
def test_an_edited_learning_rate_reaches_a_replayed_graph():
    """Row 7 of docs/contract.md."""
    param = trained([1.0], [1.0], "cuda:0")
    optimizer = optim.SGD([param], lr=0.5)
    stream, graph = captured(optimizer)
    with stream:
        optimizer.param_groups[0]["lr"] = 0.25
        optimizer.before_replay()
        graph.launch()
    stream.synchronize()
    assert values(param) == [0.25]
    assert optimizer.state[param]["step"] == 2


@pytest.mark.usefixtures("emulated")
def test_a_group_added_after_a_capture_asks_for_another():
    """Row 6 of docs/contract.md."""
    param, more = (trained([1.0], [1.0], "cuda:0") for _ in range(2))
    optimizer = optim.SGD([param], lr=0.5)
    stream, _ = captured(optimizer)
    optimizer.add_param_group({"params": [more]})
    with stream, pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay()
    optimizer.step()
    assert values(more) == [0.5]


OPTIONS = {
    "betas": (0.5, 0.5),
    "eps": 0.5,
    "weight_decay": 0.5,
    "amsgrad": "raw",
    "decoupled_weight_decay": True,
    "maximize": True,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_any_option_of_adam_takes_effect_at_the_next_step(device, option):
    """Row 7 of docs/contract.md."""
    edited, fresh = (trained([1.0], [3.0], device) for _ in range(2))
    start = {"weight_decay": 0.1, "lr": 0.1}
    one = optim.Adam([edited], **start)
    two = optim.Adam([fresh], **{**start, option: OPTIONS[option]})
    one.step()
    fresh.data[...] = edited.data
    two.state[fresh] = {k: s if k == "step" else s.copy() for k, s in one.state[edited].items()}
    one.param_groups[0][option] = OPTIONS[option]
    before = values(edited)
    for param, optimizer in ((edited, one), (fresh, two)):
        param.grad = array([0.25], device)
        optimizer.step()
    assert values(edited) == values(fresh) != before


def test_an_option_of_one_group_does_not_reach_the_other(device):
    """Row 7 of docs/contract.md."""
    one, two = trained([1.0], [1.0], device), trained([1.0], [1.0], device)
    optimizer = optim.SGD([{"params": [one]}, {"params": [two]}], lr=0.5)
    optimizer.param_groups[1]["lr"] = 0.25
    optimizer.step()
    assert values(one) + values(two) == [0.5, 0.75]


def test_a_group_dict_that_was_replaced_takes_effect_at_the_next_step(device):
    """Row 7 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = optim.SGD([param], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.25}
    optimizer.step()
    assert values(param) == [0.25]


def test_a_parameter_that_was_exchanged_in_its_list_takes_effect(device):
    """Row 7 of docs/contract.md."""
    one, two = trained([1.0], [1.0], device), trained([5.0], [1.0], device)
    optimizer = optim.SGD([one], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = two
    optimizer.step()
    assert values(one) + values(two) == [0.5, 4.5]


def test_names_come_from_pairs(device):
    """Row 8 of docs/contract.md."""
    optimizer = optim.SGD([("w", Parameter([1.0], device=device)), ("b", Parameter([2.0]))])
    assert optimizer.param_groups[0]["param_names"] == ["w", "b"]


def test_a_pair_overrules_the_name_of_the_parameter():
    """Row 8 of docs/contract.md."""
    optimizer = optim.SGD([("outer", Parameter([1.0], name="inner"))])
    assert optimizer.param_groups[0]["param_names"] == ["outer"]


def test_names_come_from_parameters():
    """Row 8 of docs/contract.md."""
    optimizer = optim.SGD([Parameter([1.0], name="w")])
    assert optimizer.param_groups[0]["param_names"] == ["w"]


def test_unnamed_parameters_are_numbered_by_group():
    """Row 8 of docs/contract.md."""
    groups = [{"params": [Parameter([1.0])]}, {"params": [Parameter([2.0]), Parameter([3.0])]}]
    optimizer = optim.SGD(groups)
    assert [g["param_names"] for g in optimizer.param_groups] == [["0.0"], ["1.0", "1.1"]]


def test_names_appear_in_state_dicts_and_repr():
    """Row 8 of docs/contract.md."""
    optimizer = optim.SGD([("encoder.weight", Parameter([1.0]))])
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == ["encoder.weight"]
    assert "encoder.weight" in repr(optimizer)


def test_mixing_named_and_unnamed_in_a_group_is_refused():
    """Row 8 of docs/contract.md."""
    with pytest.raises(ValueError, match="mixes named and unnamed parameters: name element 1"):
        optim.SGD([Parameter([1.0], name="w"), Parameter([2.0])])


def test_mixing_named_and_unnamed_groups_is_refused():
    """Row 8 of docs/contract.md."""
    optimizer = optim.SGD([("w", Parameter([1.0]))])
    with (
        unchanged(optimizer),
        pytest.raises(ValueError, match=r"groups 0 and 1.*name those of all"),
    ):
        optimizer.add_param_group({"params": [Parameter([2.0])]})


def test_a_group_can_be_added_after_one_was_deleted():
    """Row 8 of docs/contract.md."""
    optimizer = optim.SGD([{"params": [Parameter([1.0])]}, {"params": [Parameter([2.0])]}])
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": [Parameter([3.0])]})
    assert len(optimizer.param_groups) == 2


def test_repr_shows_class_sorted_options_counts_and_device(device):
    """Row 9 of docs/contract.md."""
    params = [Parameter(np.zeros((2, 3), np.float32), device=device) for _ in range(2)]
    optimizer = optim.SGD(params, lr=0.5)
    lines = repr(optimizer).splitlines()
    assert lines[0] == "SGD ("
    assert lines[1] == "Parameter Group 0"
    options = [re.fullmatch(r"    (\w+): (.+)", line) for line in lines[2:-2]]
    names = [match[1] for match in options]
    assert names == sorted(names) == sorted(optimizer.defaults)
    assert "    lr: 0.5" in lines
    place = "cpu" if device == "cpu" else "cuda:0"
    assert lines[-2] == f"    2 parameters (0.0, 0.1), 12 elements on {place}"


def test_repr_of_many_parameters_stays_short():
    """Row 9 of docs/contract.md."""
    optimizer = optim.SGD([(f"layer{i}", Parameter([1.0])) for i in range(100)])
    assert "100 parameters (layer0, layer1, layer2, layer3, …), 100 elements" in repr(optimizer)


BOUNDS = [
    ("lr", -0.1, ">= 0"),
    ("lr", math.nan, "finite"),
    ("lr", math.inf, "finite"),
    ("lr", 10**400, "finite"),
    ("weight_decay", -1e-9, ">= 0"),
    ("weight_decay", math.inf, "finite"),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("option", "value", "bound"), BOUNDS)
def test_an_option_out_of_bounds_is_named_with_bound_and_value(rule, option, value, bound):
    """Row 10 of docs/contract.md."""
    with pytest.raises(ValueError, match=f"{option} must be {bound}, not {value!r}"):
        rule([Parameter([1.0])], **{option: value})


@pytest.mark.parametrize("rule", [optim.Adam, optim.AdamW])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("value", [-0.1, 1.0, 1.5])
def test_a_decay_rate_lies_in_zero_to_one(rule, place, value):
    """Row 10 of docs/contract.md."""
    betas = [0.9, 0.999]
    betas[place] = value
    with pytest.raises(ValueError, match=rf"betas\[{place}\] must be >= 0 and < 1, not {value}"):
        rule([Parameter([1.0])], betas=tuple(betas))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_decay_rate_is_finite(value):
    """Row 10 of docs/contract.md."""
    with pytest.raises(ValueError, match=rf"betas\[1\] must be finite, not {value}"):
        optim.Adam([Parameter([1.0])], betas=(0.9, value))


def test_eps_is_not_negative():
    """Row 10 of docs/contract.md."""
    with pytest.raises(ValueError, match="eps must be >= 0, not -1e-08"):
        optim.Adam([Parameter([1.0])], eps=-1e-8)


def test_momentum_is_not_negative():
    """Row 10 of docs/contract.md."""
    with pytest.raises(ValueError, match=r"momentum must be >= 0, not -0\.5"):
        optim.SGD([Parameter([1.0])], momentum=-0.5)


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_momentum_and_no_dampening(options):
    """Row 10 of docs/contract.md."""
    with pytest.raises(ValueError, match="nesterov needs momentum > 0 and dampening 0, not"):
        optim.SGD([Parameter([1.0])], nesterov=True, **options)


def test_the_bounds_themselves_are_allowed(device):
    """Row 10 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optim.Adam([param], lr=0, betas=(0, 0), eps=0, weight_decay=0).step()
    assert values(param) == [1.0]


def test_an_option_edited_out_of_bounds_is_refused_at_the_next_step(device):
    """Row 10 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optimizer = optim.SGD([param], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = -1
    with unchanged(optimizer), pytest.raises(ValueError, match="lr must be >= 0, not -1"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert values(param) == [0.25]
