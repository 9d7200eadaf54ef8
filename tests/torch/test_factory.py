"""The classes for PyTorch: found by export, with PyTorch's options and meanings."""

from __future__ import annotations

import inspect
import pickle

import pytest

from tests import rules
from tests.torch.support import assert_close, parameters, set_gradients, values

torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[oracle]'")
import lucid_gpu.torch as ours  # noqa: E402
from lucid_gpu.optim.core import checks  # noqa: E402
from lucid_gpu.optim.core.fused import FusedOptimizer  # noqa: E402
from lucid_gpu.torch.factory import torch_class  # noqa: E402

NAMES = [rule.__name__ for rule in rules.optimizers()]
ALSO_THERE = [name for name in NAMES if inspect.isclass(getattr(torch.optim, name, None))]


def test_every_fused_optimizer_that_is_exported_is_there():
    assert set(ours.__all__) == {"TorchOptimizer", *NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_each_is_a_documented_optimizer_of_pytorch_under_its_name(name):
    kind = getattr(ours, name)
    assert issubclass(kind, torch.optim.Optimizer)
    assert (kind.__name__, kind.__module__) == (name, "lucid_gpu.torch")
    assert name in kind.__doc__
    assert pickle.loads(pickle.dumps(kind)) is kind


def test_their_base_is_abstract():
    with pytest.raises(TypeError, match="TorchOptimizer is abstract"):
        ours.TorchOptimizer(parameters(2))


@pytest.mark.parametrize("name", NAMES)
def test_each_steps_as_the_optimizer_of_arrays_does_to_the_bit(name):
    rule = getattr(rules.optim, name)
    mine, theirs = parameters((3, 4), (5,), ()), parameters((3, 4), (5,), ())
    options = {} if name != "SGD" else {"momentum": 0.9}
    optimizers = getattr(ours, name)(mine, **options), rule(theirs, **options)
    for seed in range(3):
        for params, optimizer in zip((mine, theirs), optimizers, strict=True):
            set_gradients(params, seed)
            optimizer.step()
    assert values(mine) == values(theirs)


@pytest.mark.parametrize("name", ALSO_THERE)
def test_defaults_are_pytorchs(name):
    own = getattr(ours, name)(parameters(2)).defaults
    their = getattr(torch.optim, name)(parameters(2)).defaults
    for option in own.keys() & their.keys():
        assert own[option] == their[option], option


def test_arguments_are_taken_by_position_as_pytorch_does():
    own, their = parameters(2), parameters(2)
    arguments = 0.1, (0.8, 0.9), 1e-3, 0.2, True
    optimizers = ours.Adam(own, *arguments), torch.optim.Adam(their, *arguments)
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    assert_close(own, their)


def test_amsgrad_is_pytorchs():
    own, their = parameters((4,)), parameters((4,))
    optimizers = ours.Adam(own, amsgrad=True), torch.optim.Adam(their, amsgrad=True)
    for seed in range(5):
        for params, optimizer in zip((own, their), optimizers, strict=True):
            set_gradients(params, seed)
            for param in params:
                param.grad /= 1 + seed
            optimizer.step()
    assert optimizers[0].param_groups[0]["amsgrad"] is True
    assert_close(own, their)


def test_amsgrad_of_this_package_is_refused():
    with pytest.raises(ValueError, match="amsgrad must be True or False, not 'raw'"):
        ours.Adam(parameters(2), amsgrad="raw")


@pytest.mark.parametrize("option", ["foreach", "fused"])
@pytest.mark.parametrize("value", [None, False, True])
def test_options_that_choose_an_implementation_change_nothing(option, value):
    plain, own = parameters(3), parameters(3)
    optimizer = ours.AdamW([{"params": own, option: value}], **{option: value})
    optimizer.step()
    ours.AdamW(plain).step()
    assert values(own) == values(plain)
    assert option not in optimizer.param_groups[0]


@pytest.mark.parametrize("option", ["capturable", "differentiable"])
def test_options_that_ask_for_what_there_is_not_are_refused(option):
    with pytest.raises(ValueError, match=f"Adam does not support {option}=True"):
        ours.Adam(parameters(2), **{option: True})


@pytest.mark.parametrize("option", ["state_device", "nonsense"])
def test_an_option_that_is_unknown_is_refused(option):
    with pytest.raises(TypeError, match=f"Adam.*{option}"):
        ours.Adam(parameters(2), **{option: 1})


def test_the_signature_shows_the_options():
    shown = inspect.signature(ours.AdamW).parameters
    assert {"params", "lr", "betas", "maximize", "foreach"} <= set(shown)
    assert shown["weight_decay"].default == 0.01


def test_what_a_rule_offers_beside_steps_is_offered_for_tensors():
    params = parameters((2, 3))
    optimizer = ours.ASGD(params, t0=0)
    optimizer.step()
    (average,) = optimizer.averages()
    assert isinstance(average, torch.Tensor)
    assert average.shape == params[0].shape


def test_averages_of_a_schedule_free_optimizer_come_and_go():
    params, arrays = parameters(3), parameters(3)
    own, other = ours.SGDScheduleFree(params, lr=0.1), rules.optim.SGDScheduleFree(arrays, lr=0.1)
    for optimizer in (own, other):
        optimizer.step()
        optimizer.step()
        optimizer.eval()
    assert values(params) == values(arrays)
    assert own.param_groups[0]["train_mode"] is False
    with pytest.raises(RuntimeError, match="call train"):
        own.step()
    for optimizer in (own, other):
        optimizer.train()
        optimizer.step()
    assert values(params) == values(arrays)


def test_a_rule_of_ones_own_gets_its_class_too():
    class Descent(rules.optim.SGD):
        def __init__(self, params, pace=0.5, **frame):
            super().__init__(params, pace, **frame)
            self.defaults["pace"] = pace

        def check_options(self, options):
            checks.nonnegative(options, "lr")
            super().check_options(options)

    assert issubclass(Descent, FusedOptimizer)
    kind = torch_class(Descent, __name__)
    params = parameters(2)
    before = params[0].detach().clone()
    kind(params, pace=0.25).step()
    assert_close(params, [before - 0.25 * params[0].grad])


SAVED_OTHERWISE = {"SGD": {"step"}, "NAdam": {"mu_product"}}
"""Slots that PyTorch's class does not save, or as a tensor."""


@pytest.mark.parametrize("name", ALSO_THERE)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"amsgrad": True}], ids=str)
def test_state_dicts_have_the_form_of_pytorchs(name, options):
    if not options.keys() <= inspect.signature(getattr(torch.optim, name)).parameters.keys():
        options = {}
    forms = []
    for library in (ours, torch.optim):
        optimizer = getattr(library, name)(parameters((3, 2), (4,)), **options)
        optimizer.step()
        saved = optimizer.state_dict()
        assert [group["params"] for group in saved["param_groups"]] == [[0, 1]]
        forms.append(
            {
                (key, slot): (value.dtype, value.shape)
                for key, slots in saved["state"].items()
                for slot, value in slots.items()
                if slot not in SAVED_OTHERWISE.get(name, ())
            }
        )
    assert forms[0] == forms[1]
