"""Where the interface comes from: every name that those libraries document, and its arguments."""

from __future__ import annotations

import inspect

import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim.dialects import tiny_pytorch

METHODS = {
    "lucid.optim.Optimizer": (
        optim.Optimizer,
        {
            "__init__": ["params", "defaults"],
            "param_groups_setup": ["params", "defaults"],
            "step": ["closure"],
            "zero_grad": [],
            "add_param_group": ["param_group"],
            "state_dict": [],
            "load_state_dict": ["state_dict"],
            "__repr__": [],
        },
    ),
    "afnio.optim.optimizer.Optimizer": (
        optim.Optimizer,
        {
            "__init__": ["params", "defaults"],
            "add_param_group": ["param_group"],
            "clear_grad": [],
            "load_state_dict": ["state_dict"],
            "state_dict": [],
            "step": ["closure"],
        },
    ),
    "the small Tensor library: Optimizer": (
        tiny_pytorch.Optimizer,
        {"__init__": ["params"], "step": [], "reset_grad": []},
    ),
    "the small Tensor library: SGD": (
        tiny_pytorch.SGD,
        {
            "__init__": ["params", "lr", "momentum", "weight_decay"],
            "step": [],
            "reset_grad": [],
        },
    ),
    "the small Tensor library: Adam": (
        tiny_pytorch.Adam,
        {
            "__init__": ["params", "lr", "beta1", "beta2", "eps", "weight_decay"],
            "step": [],
            "reset_grad": [],
        },
    ),
    "mighty.utils.stub.OptimizerStub": (
        optim.OptimizerStub,
        {
            "__init__": [],
            "add_param_group": ["param_group"],
            "load_state_dict": ["state_dict"],
            "profile_hook_step": ["func"],
            "register_load_state_dict_post_hook": ["hook", "prepend"],
            "register_load_state_dict_pre_hook": ["hook", "prepend"],
            "register_state_dict_post_hook": ["hook", "prepend"],
            "register_state_dict_pre_hook": ["hook", "prepend"],
            "register_step_post_hook": ["hook"],
            "register_step_pre_hook": ["hook"],
            "state_dict": [],
            "step": ["closure"],
            "zero_grad": ["set_to_none"],
        },
    ),
    "lucid.optim.Adam": (
        optim.Adam,
        {"__init__": ["params", "lr", "betas", "eps", "weight_decay", "amsgrad"]},
    ),
}
CALLS = [
    (owner, method, arguments)
    for owner, (_, methods) in METHODS.items()
    for method, arguments in methods.items()
]


@pytest.mark.parametrize(("owner", "method", "arguments"), CALLS)
def test_a_documented_call_is_accepted(owner, method, arguments):
    kind = METHODS[owner][0]
    signature = inspect.signature(getattr(kind, method))
    is_static = isinstance(inspect.getattr_static(kind, method), staticmethod)
    own = [] if is_static else [None]
    positional = list(signature.parameters)[len(own) :][: len(arguments)]
    assert positional == arguments
    signature.bind(*own, *arguments)
    signature.bind(*own, **dict.fromkeys(arguments))


DEFAULTS = [
    (
        optim.Adam,
        {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False},
    ),
    (tiny_pytorch.SGD, {"lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}),
    (
        tiny_pytorch.Adam,
        {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0},
    ),
    (optim.Optimizer.step, {"closure": None}),
    (optim.Optimizer.zero_grad, {"set_to_none": True}),
    (optim.Optimizer.register_state_dict_pre_hook, {"prepend": False}),
    (optim.Optimizer.load_state_dict, {"model_clients": None}),
]


@pytest.mark.parametrize(("call", "defaults"), DEFAULTS)
def test_a_documented_default_is_the_default(call, defaults):
    parameters = inspect.signature(call).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


def test_the_dialects_optimizers_share_its_base_methods():
    """The small Tensor library calls `reset_grad` on all of its optimizers."""
    for kind in (tiny_pytorch.Optimizer, tiny_pytorch.SGD, tiny_pytorch.Adam):
        assert kind.reset_grad is optim.Optimizer.reset_grad


def test_the_dialects_base_class_is_abstract():
    with pytest.raises(NotImplementedError, match=r"must define step"):
        tiny_pytorch.Optimizer([Parameter([1.0])]).step()
