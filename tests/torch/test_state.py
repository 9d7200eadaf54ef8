"""TorchState: slots that are tensors, into and out of state dicts."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest

from tests.torch.support import torch

pytest.importorskip("lucid_gpu.torch")
from lucid_gpu.optim.core.pytorch import Counterpart
from lucid_gpu.torch.state import TorchSlots, TorchState, loaded, to_save

NONE = Counterpart()


def test_slots_can_be_made_of_a_mapping_alone():
    slots = TorchSlots(OrderedDict(step=torch.tensor(3.0), exp_avg=torch.ones(2)))
    assert slots["step"] == 3
    assert slots.copy().keys() == {"step", "exp_avg"}


@pytest.mark.parametrize("step", [3, 3.0, torch.tensor(3.0), torch.tensor([3]), torch.tensor(3)])
def test_a_count_becomes_an_int_however_it_is_given(step):
    state, param = TorchState(), torch.ones(1)
    state[param] = {"step": step}
    assert type(loaded({"step": step}, {}, NONE)["step"]) is int
    state[param]["step"] = step
    assert state[param]["step"] == 3


def test_what_is_no_count_is_left_to_be_refused():
    assert loaded({"step": torch.tensor(0.5)}, {}, NONE)["step"] == 0.5
    assert loaded({"step": "x"}, {}, NONE)["step"] == "x"


def test_numbers_that_pytorch_holds_as_tensors_become_numbers():
    found = loaded({"step": 1, "mu_product": torch.tensor(0.5)}, {"mu_product": None}, NONE)
    assert found == {"step": 1, "mu_product": 0.5}


def test_empty_slots_of_pytorch_are_left_out():
    assert loaded({"momentum_buffer": None}, {}, NONE) == {}


def test_a_count_that_pytorch_does_not_keep_is_one():
    assert loaded({"momentum_buffer": torch.ones(2)}, {}, NONE)["step"] == 1


@pytest.mark.parametrize("step", [0, 1, 2**24, 2**24 + 1, 2**53])
def test_a_count_is_saved_as_a_tensor_that_holds_it(step):
    saved = to_save({"step": step, "exp_avg": torch.ones(2)}, {}, NONE)
    assert isinstance(saved["step"], torch.Tensor)
    assert saved["step"].item() == step
    assert type(saved) is dict


def test_entries_are_replaced_all_together():
    state, old, new = TorchState(), torch.ones(1), torch.ones(1)
    state[old] = {"step": 1}
    state.replace({new: {"step": 2}})
    assert old not in state
    assert state[new]["step"] == 2
    assert type(state[new]) is TorchSlots


def test_a_copy_has_parameters_and_slots_of_its_own():
    state, param = TorchState(), torch.ones(1)
    state[param] = {"step": 1, "exp_avg": torch.ones(1)}
    twin_param, twin = copy.deepcopy((param, state))
    assert twin[twin_param]["step"] == 1
    assert twin[twin_param]["exp_avg"] is not state[param]["exp_avg"]
    assert type(twin) is TorchState
