"""States of Lucid 1.20.0, loaded here. The numbers are those of that version."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim import lucid

ADAM = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}
MOMENTS = {"exp_avg": [0.028, 0.01875], "exp_avg_sq": [0.00032193775, 0.0001623650625]}

CASES = {
    "SGD": (
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
        {"momentum_buffer": [0.53576, -0.340945]},
        [0.848024, -1.870855499],
        [0.5940486697997021, -1.8195081228169043],
    ),
    "Adam": (
        {**ADAM, "weight_decay": 0.1, "amsgrad": False},
        {
            "step": 3,
            "exp_avg": [0.052744410932064056, -0.03274695947766304],
            "exp_avg_sq": [0.00041924428660422564, 0.00022411828103940934],
        },
        [0.8024038672447205, -1.775507926940918],
        [0.6284313797950745, -1.739961862564087],
    ),
    "AdamW": (
        {**ADAM, "weight_decay": 0.01, "amsgrad": False},
        {"step": 3, **MOMENTS},
        [0.8390715718269348, -1.889405369758606],
        [0.7149545550346375, -2.03635835647583],
    ),
    "Adamax": (
        ADAM,
        {"step": 3, "exp_avg": MOMENTS["exp_avg"], "exp_inf": [0.49900051951408386, 0.3]},
        [0.8582206964492798, -1.8967205286026],
        [0.7821114659309387, -1.988020658493042],
    ),
    "Adagrad": (
        {"lr": 0.1, "eps": 1e-10, "weight_decay": 0.0, "initial_accumulator_value": 0.1},
        {"step": 3, "sum_sq_grad": [0.4225, 0.2625]},
        [0.9390248656272888, -2.0206139087677],
        [0.9176000356674194, -2.1032893657684326],
    ),
    "Adadelta": (
        {"lr": 1.0, "rho": 0.9, "eps": 1e-3, "weight_decay": 0.0},
        {
            "step": 3,
            "sq_avg": [0.026874998584389687, 0.014962499961256981],
            "accumulated_update": [0.0012314283521845937, 0.0020570186898112297],
        },
        [0.9375522136688232, -2.063291311264038],
        [0.9030452966690063, -2.2362916469573975],
    ),
    "RMSprop": (
        {
            "lr": 0.1,
            "alpha": 0.99,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "momentum": 0.9,
            "centered": True,
        },
        {
            "step": 3,
            "square_avg": [0.0031690001487731934, 0.001611562562175095],
            "momentum_buffer": [5.87544584274292, 2.699871301651001],
            "grad_avg": [0.003425499889999628, 0.001539750024676323],
        },
        [-1.0476646423339844, -0.733995795249939],
        [-3.8251430988311768, -3.524611234664917],
    ),
    "Rprop": (
        {"lr": 0.1, "etas": (0.5, 1.2), "step_sizes": (1e-6, 50.0)},
        {"step": 3, "prev_grad": [0.1, 0.3], "step_size": [0.05, 0.05]},
        [0.85, -1.95],
        [0.718, -2.04],
    ),
}
"""The options of a group, the state after three steps, the parameter then and three steps later."""

GRADIENTS = [(0.3, 0.5), (0.2, -0.1), (-0.4, 0.2)]


class Saved:
    """A copy of a parameter, as Lucid's state dicts hold them."""

    def __init__(self, data):
        self.data = np.array(data, np.float32)


def arrays(slots):
    return {
        name: np.array(value, np.float32) if isinstance(value, list) else value
        for name, value in slots.items()
    }


def state_dict(options, slots, data):
    """A state dict of Lucid, which holds one copy of a parameter with its state, another beside."""
    return {
        "state": {Saved(data): arrays(slots)},
        "param_groups": [{"params": [Saved(data)], **options}],
    }


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_as_in_lucid(name):
    options, slots, data, later = CASES[name]
    param = Parameter(np.array(data, np.float32))
    optimizer = getattr(optim, name)([param])
    optimizer.load_state_dict(lucid.translate(state_dict(options, slots, data), name))
    for gradient in GRADIENTS:
        param.grad = np.array(gradient, np.float32)
        optimizer.step()
    np.testing.assert_allclose(param.numpy(), later, rtol=2e-6)


def test_the_maximum_of_amsgrad_which_lucid_forgets_begins_anew():
    slots = {"step": 3, **MOMENTS, "max_exp_avg_sq": [0.0, 0.0]}
    param = Parameter(np.ones(2, np.float32))
    optimizer = optim.Adam([param])
    dictionary = state_dict({**ADAM, "amsgrad": True}, slots, [1.0, 1.0])
    optimizer.load_state_dict(lucid.translate(dictionary, "Adam"))
    param.grad = np.zeros(2, np.float32)
    optimizer.step()
    second = np.array(MOMENTS["exp_avg_sq"]) * 0.999 / (1 - 0.999**4)
    np.testing.assert_allclose(optimizer.state[param]["max_exp_avg_sq"], second, rtol=1e-6)


def test_every_class_that_it_translates_has_a_case():
    assert set(CASES) == set(lucid.SLOTS)


@pytest.mark.parametrize("name", lucid.OTHERS)
def test_other_algorithms_of_the_same_name_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} of Lucid is another algorithm than {name} here"):
        lucid.translate({"state": {}, "param_groups": []}, name)


def trained():
    """An optimizer as Lucid's: the second parameter has stepped first, the third one never."""

    class Adam:
        def __init__(self, params):
            self.defaults = dict(ADAM)
            self.param_groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.5}]
            self.state = {
                params[1]: {"step": 2, "exp_avg": params[1].data, "exp_avg_sq": params[1].data},
                params[0]: {"step": 1, "exp_avg": params[0].data, "exp_avg_sq": params[0].data},
            }

    return Adam([Saved([1.0]), Saved([2.0]), Saved([3.0])])


def test_each_state_goes_to_its_parameter_whatever_the_order_of_first_steps():
    translated = lucid.translate(trained())
    assert {key: slots["step"] for key, slots in translated["state"].items()} == {0: 1, 1: 2}
    assert translated["state"][1]["exp_avg"] == [2.0]


def test_so_it_does_from_a_state_dict_with_copies():
    source = trained()
    copies = {key: copy.deepcopy(getattr(source, key)) for key in ("state", "param_groups")}
    translated = lucid.translate(copies, "Adam")
    assert {key: slots["step"] for key, slots in translated["state"].items()} == {0: 1, 1: 2}


def test_a_group_without_an_option_has_that_of_the_optimizer():
    first, second = lucid.translate(trained())["param_groups"]
    assert (first["lr"], second["lr"]) == (0.1, 0.5)
    assert (first["params"], second["params"]) == ([0, 1], [2])


def test_the_state_is_refused_by_another_class():
    optimizer = optim.RAdam([Parameter([1.0]), Parameter([2.0])])
    optimizer.add_param_group({"params": [Parameter([3.0])]})
    with pytest.raises(ValueError, match="saved by Adam, this is RAdam"):
        optimizer.load_state_dict(lucid.translate(trained()))


def test_what_was_loaded_shares_nothing_with_the_state():
    source = trained()
    optimizer = optim.Adam([Parameter([1.0]), Parameter([2.0])])
    optimizer.add_param_group({"params": [Parameter([3.0])]})
    optimizer.load_state_dict(lucid.translate(source))
    for param in optimizer.state:
        param.grad = np.ones(1, np.float32)
    optimizer.step()
    assert [slots["exp_avg"].tolist() for slots in source.state.values()] == [[2.0], [1.0]]


def test_state_of_a_parameter_that_no_group_holds_is_refused():
    dictionary = state_dict(ADAM, {"step": 1}, [1.0])
    dictionary["state"][Saved([7.0])] = {"step": 1}
    with pytest.raises(ValueError, match="state of 1 parameters that no group holds"):
        lucid.translate(dictionary, "Adam")


@pytest.mark.parametrize(
    ("source", "algorithm", "error", "text"),
    [
        ({"state": {}, "param_groups": []}, None, TypeError, "names no class"),
        ({"state": {}}, "Adam", TypeError, "optimizer of Lucid or its state dict, not a dict"),
        (3, "Adam", TypeError, "not a int"),
        ({"state": {}, "param_groups": []}, "Adan", ValueError, "one of SGD, Adam, .*'Adan'"),
    ],
)
def test_what_it_cannot_translate_is_refused(source, algorithm, error, text):
    with pytest.raises(error, match=text):
        lucid.translate(source, algorithm)
