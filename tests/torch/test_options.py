"""Options as PyTorch spells them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
from lucid_gpu import optim  # noqa: E402
from lucid_gpu.torch import options  # noqa: E402


def own(given):
    return options.own(given, optim.Adam.counterpart)


def test_tensors_of_one_element_become_numbers():
    found = own({"lr": torch.tensor(0.5), "betas": (torch.tensor([0.25]), 0.5), "eps": 1})
    assert found == {"lr": 0.5, "betas": (0.25, 0.5), "eps": 1}
    assert type(found["lr"]) is float


def test_a_tensor_of_more_elements_is_no_number():
    with pytest.raises(
        ValueError, match="lr must be a number or a tensor of one element, not one of 2"
    ):
        own({"lr": torch.ones(2)})


def test_switches_get_the_names_of_this_package():
    assert own({"amsgrad": True}) == {"amsgrad": "raw"}
    assert own({"amsgrad": False}) == {"amsgrad": False}


@pytest.mark.parametrize("value", [0.5, (0.5, 0.25), None, "x"])
def test_plain_options_hold_no_tensors(value):
    assert not options.has_tensors(value)


@pytest.mark.parametrize("value", [torch.tensor(0.5), (0.5, torch.tensor(0.25))])
def test_tensors_are_found_in_tuples_too(value):
    assert options.has_tensors(value)


def test_options_of_execution_are_taken_out():
    given = {"lr": 1.0, "fused": True, "foreach": None, "capturable": False}
    options.take_execution(given, "Adam")
    assert given == {"lr": 1.0}


def test_state_on_the_host_is_refused_with_the_remedy():
    with pytest.raises(
        TypeError, match=r"Adam does not support state_device .*lucid_gpu.optim.Adam"
    ):
        options.take_execution({"lr": 1.0, "state_device": "host"}, "Adam")
    given = {"lr": 1.0, "state_device": None}
    options.take_execution(given, "Adam")
    assert given == {"lr": 1.0}
