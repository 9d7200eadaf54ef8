"""The bounds of every option of every rule, at construction, in groups and when edited."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.optim.core.fused import FRAME_DEFAULTS
from tests import array_rules, rules
from tests.contract.support import unchanged

NONNEGATIVE = [
    ("Adadelta", "lr rho eps weight_decay"),
    ("Adagrad", "lr lr_decay weight_decay initial_accumulator_value eps"),
    ("Adam", "lr eps weight_decay"),
    ("AdamW", "lr eps weight_decay"),
    ("AdamWScheduleFree", "lr eps weight_decay warmup_steps r weight_lr_power"),
    ("Adamax", "lr eps weight_decay"),
    ("Adan", "lr eps weight_decay"),
    ("ASGD", "lr lambd alpha t0 weight_decay"),
    ("LAMB", "lr eps weight_decay"),
    ("LARS", "lr momentum weight_decay trust_coefficient eps"),
    ("Lion", "lr weight_decay"),
    ("NAdam", "lr eps weight_decay momentum_decay"),
    ("RAdam", "lr eps weight_decay"),
    ("RMSprop", "lr eps weight_decay momentum"),
    ("Rprop", "lr"),
    ("SGD", "lr momentum weight_decay"),
    ("SGDScheduleFree", "lr weight_decay warmup_steps r weight_lr_power"),
]
BELOW_0 = [(name, option, -0.1, ">= 0") for name, own in NONNEGATIVE for option in own.split()]
PAIRS = ("Adam", "AdamW", "AdamWScheduleFree", "Adamax", "LAMB", "Lion", "NAdam", "RAdam")
RATES = [
    case
    for name in PAIRS
    for case in (
        (name, "betas", (1.0, 0.5), r"betas\[0\] must be >= 0 and < 1, not 1.0"),
        (name, "betas", (0.5, -0.1), r"betas\[1\] must be >= 0 and < 1, not -0.1"),
        (name, "betas", (0.5,), r"a tuple of 2 numbers in \[0, 1\), not \(0.5,\)"),
    )
]
OWN = [
    ("Adadelta", "rho", 1.1, "rho must be >= 0 and <= 1, not 1.1"),
    ("AdamWScheduleFree", "betas", (0.0, 0.9), r"betas\[0\] must be > 0 and < 1, not 0.0"),
    ("Adan", "betas", (0.9, 0.9, 1.0), r"betas\[2\] must be >= 0 and < 1, not 1.0"),
    ("Adan", "betas", (0.9, 0.9), r"a tuple of 3 numbers in \[0, 1\), not \(0.9, 0.9\)"),
    ("LAMB", "bias_correction", 1, "must be one of False, True, not 1"),
    ("LAMB", "grad_averaging", None, "must be one of False, True, not None"),
    ("LAMB", "always_adapt", "yes", "must be one of False, True, not 'yes'"),
    ("LARS", "nesterov", 1, "must be one of False, True, not 1"),
    ("NAdam", "decoupled_weight_decay", 1, "must be one of False, True, not 1"),
    ("RAdam", "decoupled_weight_decay", None, "must be one of False, True, not None"),
    ("RMSprop", "alpha", 1.0, "alpha must be >= 0 and < 1, not 1.0"),
    ("RMSprop", "alpha", -0.1, "alpha must be >= 0 and < 1, not -0.1"),
    ("RMSprop", "centered", 1, "centered must be one of False, True, not 1"),
    ("RMSprop", "eps_inside_sqrt", "yes", "must be one of False, True, not 'yes'"),
    ("Rprop", "etas", (1, 0.5), r"0 < etas\[0\] < 1 < etas\[1\], not \(1, 0.5\)"),
    ("Rprop", "etas", (0, 1.2), r"0 < etas\[0\] < 1 < etas\[1\], not \(0, 1.2\)"),
    ("Rprop", "etas", (0.5, 1), r"0 < etas\[0\] < 1 < etas\[1\], not \(0.5, 1\)"),
    ("Rprop", "etas", (0.5,), r"etas must be a tuple of 2 numbers, not \(0.5,\)"),
    ("Rprop", "step_sizes", (0, 1), r"0 < step_sizes\[0\] <= step_sizes\[1\], not \(0, 1\)"),
    ("Rprop", "step_sizes", (2, 1), r"0 < step_sizes\[0\] <= step_sizes\[1\], not \(2, 1\)"),
    ("Rprop", "step_sizes", 1, "step_sizes must be a tuple of 2 numbers, not 1"),
    ("SGDScheduleFree", "momentum", 0.0, "momentum must be > 0 and < 1, not 0.0"),
    ("SGDScheduleFree", "momentum", 1.0, "momentum must be >= 0 and < 1, not 1.0"),
]
ALLOWED = [
    ("Adadelta", {"rho": 1.0}),
    ("Adan", {"betas": (0.0, 0.0, 0.0)}),
    ("ASGD", {"alpha": 1.0, "t0": 0}),
    ("LAMB", {"betas": (0.0, 0.0), "eps": 0.0, "weight_decay": 0.0}),
    ("LARS", {"momentum": 0.0, "trust_coefficient": 0.0}),
    ("LARS", {"dampening": -0.5, "trust_coefficient": None}),
    ("Lion", {"betas": (0.0, 0.0)}),
    ("NAdam", {"betas": (0.0, 0.0), "momentum_decay": 0.0}),
    ("RAdam", {"betas": (0.0, 0.0)}),
    ("RMSprop", {"alpha": 0.0}),
    ("Rprop", {"step_sizes": (1, 1)}),
    ("SGDScheduleFree", {"lr": 0.0, "weight_lr_power": 0.0}),
    ("SGDScheduleFree", {"lr": 0.0}),
]
"""What lies on a bound, and steps without an error."""


def numbers(rule):
    """The options of a rule, not of the frame, that are one number."""
    arguments = inspect.signature(rule).parameters.values()
    own = [a for a in arguments if a.name not in FRAME_DEFAULTS]
    return [a.name for a in own if type(a.default) in (int, float)]


@pytest.mark.parametrize(("name", "option", "value", "text"), [*BELOW_0, *RATES, *OWN], ids=str)
def test_an_option_out_of_bounds_is_refused(name, option, value, text):
    rule = getattr(optim, name)
    with pytest.raises(ValueError, match=text):
        rule([Parameter([1.0])], **{option: value})
    optimizer = rule([Parameter([1.0])])
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [Parameter([1.0])], option: value})


@pytest.mark.parametrize(("name", "option", "value", "text"), [*BELOW_0, *RATES, *OWN], ids=str)
def test_an_option_edited_out_of_bounds_is_refused_ahead_of_the_step(name, option, value, text):
    param = Parameter([1.0])
    param.grad = np.array([0.5], np.float32)
    optimizer = getattr(optim, name)([param])
    optimizer.step()
    optimizer.param_groups[0][option] = value
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.step()


@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_the_bounds_of_every_number_are_tested(rule):
    tested = {option for name, option, _, _ in [*BELOW_0, *OWN] if name == rule.__name__}
    assert set(numbers(rule)) <= tested | {"dampening"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.1", None, 1j, True])
@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_what_is_no_finite_number_is_refused(rule, value):
    for option in numbers(rule):
        if value is None and "None" in str(inspect.signature(rule).parameters[option].annotation):
            continue
        with pytest.raises((TypeError, ValueError), match=f"^{option} must be "):
            rule([Parameter([1.0])], **{option: value})


every_optimizer = pytest.mark.parametrize(
    "rule", [*rules.optimizers(), *array_rules.optimizers()], ids=lambda rule: rule.__name__
)


@every_optimizer
@pytest.mark.parametrize("option", ["foreach", "fused", "capturable", "differentiable"])
def test_options_that_say_how_pytorch_runs_are_no_arguments(rule, option):
    assert option not in inspect.signature(rule).parameters
    with pytest.raises(TypeError, match=option):
        rule([Parameter([[1.0]])], **{option: True})


@every_optimizer
@pytest.mark.parametrize("dtype", ["complex64", "int32", "bool"])
def test_parameters_of_no_real_floating_point_type_are_refused_ahead_of_the_step(rule, dtype):
    param = Parameter(np.ones((2, 2), dtype), name="w")
    param.grad = np.ones((2, 2), dtype)
    optimizer = rule([param])
    with unchanged(optimizer), pytest.raises(TypeError, match=f"'w' has dtype {dtype}: use float"):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize(("name", "options"), ALLOWED, ids=str)
def test_what_lies_on_a_bound_steps(name, options):
    param = Parameter([1.0])
    optimizer = getattr(optim, name)([param], **options)
    for _ in range(3):
        param.grad = np.array([0.5], np.float32)
        optimizer.step()
    assert math.isfinite(param.numpy()[0])
