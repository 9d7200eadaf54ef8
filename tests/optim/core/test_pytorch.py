"""State dicts of PyTorch, in and out, of every class that it has too."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim.core import pytorch
from tests import rules
from tests.contract.support import unchanged

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")

from tests.optim.test_pytorch import EXECUTION, Race, default_dtype  # noqa: E402

HOW_IT_RUNS = ("foreach", "fused", "capturable", "differentiable")

RESUMED = [
    ("Adam", {"lr": 0.05, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.1}),
    ("Adadelta", {"rho": 0.8, "weight_decay": 0.1}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.5}),
    ("Adamax", {"lr": 0.05, "maximize": True}),
    ("ASGD", {"lambd": 0.1, "t0": 2}),
    ("NAdam", {"lr": 0.05, "decoupled_weight_decay": True, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.05, "betas": (0.9, 0.99)}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"centered": True, "momentum": 0.9}),
    ("Rprop", {"lr": 0.05}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
]


def raced(name, options):
    """A race of five steps, in float64 on both sides."""
    race = Race(
        lambda params: getattr(optim, name)(params, **options),
        lambda params: getattr(torch.optim, name)(params, **options, **EXECUTION),
        np.float64,
    )
    for _ in range(5):
        race.step()
    return race


def assert_same_course(race):
    for _ in range(5):
        race.step()
        for name, ours, theirs in race.arrays():
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-13, err_msg=name)


def test_every_class_that_pytorch_has_too_is_resumed():
    names = {kind.__name__ for kind in rules.optimizers()}
    assert {name for name, _ in RESUMED} == {name for name in names if hasattr(torch.optim, name)}


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_state_dicts_of_pytorch_load_here_and_go_on(name, options):
    with default_dtype(torch.float64):
        race = raced(name, options)
        race.ours = getattr(optim, name)([race.own])
        race.own.data[...] = race.their.detach().numpy()
        race.ours.load_state_dict(race.theirs.state_dict())
        assert race.ours.param_groups[0].items() >= options.items()
        assert_same_course(race)


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_state_dicts_from_here_load_in_pytorch_and_go_on(name, options):
    with default_dtype(torch.float64):
        race = raced(name, options)
        saved = pytorch.export(race.ours.state_dict())
        race.theirs = getattr(torch.optim, name)([race.their])
        with torch.no_grad():
            race.their.copy_(torch.from_numpy(race.own.data))
        race.theirs.load_state_dict(saved)
        assert race.theirs.param_groups[0].items() >= options.items()
        assert_same_course(race)


COUNTED = [case for case in RESUMED if case[0] != "SGD"]
"""Those whose class in PyTorch counts steps."""


@pytest.mark.parametrize(("name", "options"), COUNTED, ids=str)
def test_a_round_trip_through_pytorch_changes_nothing(name, options):
    race = raced(name, options)
    race.theirs.load_state_dict(pytorch.export(race.ours.state_dict()))
    with unchanged(race.ours):
        race.ours.load_state_dict(race.theirs.state_dict())


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_an_exported_group_has_the_options_of_pytorch_and_no_others(name, options):
    race = raced(name, options)
    (exported,) = pytorch.export(race.ours.state_dict())["param_groups"]
    (theirs,) = race.theirs.state_dict()["param_groups"]
    assert exported.keys() == theirs.keys() - set(HOW_IT_RUNS)


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_an_exported_state_has_the_slots_of_pytorch_and_no_others(name, options):
    race = raced(name, options)
    exported = pytorch.export(race.ours.state_dict())["state"][0]
    assert exported.keys() == race.theirs.state_dict()["state"][0].keys()


@pytest.mark.parametrize(("name", "options"), RESUMED, ids=str)
def test_options_that_say_how_pytorch_runs_are_dropped_whatever_they_are(name, options):
    race = raced(name, options)
    saved = race.theirs.state_dict()
    saved["param_groups"][0].update(dict.fromkeys(HOW_IT_RUNS, True))
    race.ours.load_state_dict(saved)
    assert not race.ours.param_groups[0].keys() & set(HOW_IT_RUNS)


@pytest.mark.parametrize("names", [("mu_product",), ("eta", "mu")])
def test_numbers_that_pytorch_keeps_as_tensors_are_exported_as_such(names):
    name = "NAdam" if names == ("mu_product",) else "ASGD"
    race = raced(name, {})
    slots = pytorch.export(race.ours.state_dict())["state"][0]
    assert slots.keys() == race.theirs.state[race.their].keys()
    for each in names:
        assert (slots[each].shape, slots[each].dtype) == ((), torch.float64)
        np.testing.assert_allclose(slots[each], race.theirs.state[race.their][each], rtol=1e-6)


def test_a_mu_product_that_is_no_number_is_refused():
    race = raced("NAdam", {})
    saved = race.theirs.state_dict()
    saved["state"][0]["mu_product"] = torch.ones(2)
    with unchanged(race.ours), pytest.raises(ValueError, match="'mu_product' must be a number"):
        race.ours.load_state_dict(saved)


def test_epsilon_inside_the_root_is_not_exported():
    saved = optim.RMSprop([Parameter([1.0])], eps_inside_sqrt=True).state_dict()
    with pytest.raises(ValueError, match="eps_inside_sqrt of RMSprop cannot be exported"):
        pytorch.export(saved)
