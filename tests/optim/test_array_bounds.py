"""The bounds of every option of optimizers in array code: when made, in groups, when edited."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

from lucid_gpu import Parameter, RowGradient, optim
from tests import array_rules
from tests.contract.support import unchanged

NONNEGATIVE = [
    ("Adafactor", "lr weight_decay"),
    ("LBFGS", "lr tolerance_grad tolerance_change"),
    ("Muon", "lr weight_decay eps"),
    ("SparseAdam", "lr"),
]
BELOW_0 = [(name, option, -0.1, ">= 0") for name, own in NONNEGATIVE for option in own.split()]
OWN = [
    ("Adafactor", "beta2_decay", 0.8, "beta2_decay must be <= 0, not 0.8"),
    ("Adafactor", "d", 0.5, "d must be >= 1, not 0.5"),
    (
        "Adafactor",
        "eps",
        1e-3,
        "eps must be a tuple of None or a number and a number, not 0.001",
    ),
    ("Adafactor", "eps", (-1e-30, 1e-3), r"eps\[0\] must be >= 0, not -1e-30"),
    ("Adafactor", "eps", (None, -1.0), r"eps\[1\] must be >= 0, not -1.0"),
    ("Adafactor", "maximize", None, "maximize must be one of False, True, not None"),
    ("LBFGS", "max_iter", 0, "max_iter must be a whole number >= 1, not 0"),
    ("LBFGS", "max_iter", 1.5, "max_iter must be a whole number >= 1, not 1.5"),
    ("LBFGS", "max_eval", 0, "max_eval must be a whole number >= 1, not 0"),
    ("LBFGS", "history_size", 0, "history_size must be a whole number >= 1, not 0"),
    ("LBFGS", "line_search_fn", "weak", "must be one of None, 'strong_wolfe', not 'weak'"),
    ("SparseAdam", "betas", (1.0, 0.5), r"betas\[0\] must be >= 0 and < 1, not 1.0"),
    ("SparseAdam", "betas", (0.5, -0.1), r"betas\[1\] must be >= 0 and < 1, not -0.1"),
    ("SparseAdam", "eps", 0, "eps must be > 0, not 0"),
    ("SparseAdam", "eps", -1e-8, "eps must be > 0, not -1e-08"),
    ("SparseAdam", "maximize", 1, "maximize must be one of False, True, not 1"),
    ("Muon", "momentum", -0.1, "momentum must be >= 0 and < 1, not -0.1"),
    ("Muon", "momentum", 1.0, "momentum must be >= 0 and < 1, not 1.0"),
    ("Muon", "nesterov", 1, "nesterov must be one of False, True, not 1"),
    ("Muon", "ns_coefficients", (1, 2), r"must be a tuple of 3 numbers, not \(1, 2\)"),
    ("Muon", "ns_coefficients", (1, 2, math.nan), r"ns_coefficients\[2\] must be finite, not nan"),
    ("Muon", "ns_steps", 100, "ns_steps must be a whole number >= 0 and <= 99, not 100"),
    ("Muon", "ns_steps", -1, "ns_steps must be a whole number >= 0 and <= 99, not -1"),
    ("Muon", "ns_steps", 2.5, "ns_steps must be a whole number >= 0 and <= 99, not 2.5"),
    ("Muon", "adjust_lr_fn", "arbitrary", "one of None, 'original', 'match_rms_adamw', not 'arb"),
    ("Muon", "ns_dtype", "float16", "one of None, 'bfloat16', 'float32', 'float64', not 'float16'"),
]
OF_GROUPS = [
    ("Muon", {"kind": "sgd"}, "kind must be one of 'muon', 'adamw', not 'sgd'"),
    ("Muon", {"kind": "adamw", "betas": (1.0, 0.5)}, r"betas\[0\] must be >= 0 and < 1, not 1.0"),
    ("Muon", {"kind": "adamw", "betas": (0.5,)}, r"a tuple of 2 numbers in \[0, 1\), not \(0.5,\)"),
]
"""What no argument of the constructor is, but an option of a group."""

ALLOWED = [
    ("SparseAdam", {"lr": 0, "betas": (0, 0), "eps": 1e-300}),
    ("LBFGS", {"lr": 0, "tolerance_grad": 0, "tolerance_change": 0}),
    ("LBFGS", {"max_iter": 1, "max_eval": 1, "history_size": 1}),
    ("LBFGS", {"max_iter": 1, "max_eval": 1, "line_search_fn": "strong_wolfe"}),
    ("Adafactor", {"lr": 0, "weight_decay": 0, "beta2_decay": 0, "eps": (0, 0)}),
    ("Muon", {"lr": 0, "weight_decay": 0, "eps": 0, "momentum": 0, "ns_steps": 0}),
    ("Muon", {"ns_steps": 99, "ns_coefficients": (1.5, -0.5, 0)}),
]
"""What lies on a bound, and steps without an error."""


def numbers(rule):
    """The options of a rule that are one number."""
    arguments = inspect.signature(rule).parameters.values()
    return [a.name for a in arguments if type(a.default) in (int, float)]


def make(name, **options):
    """An optimizer of one parameter, and that."""
    param = Parameter([[1.0, 2.0]])
    return getattr(optim, name)([param], **options), param


def step(optimizer, param):
    """Take a step with a gradient."""
    gradient = np.array([[0.5, 0.25]], np.float32)

    def closure():
        is_sparse = isinstance(optimizer, optim.SparseAdam)
        param.grad = RowGradient([0], gradient) if is_sparse else gradient
        return (param.data * gradient).sum()

    closure()
    optimizer.step(closure)


@pytest.mark.parametrize(("name", "option", "value", "text"), [*BELOW_0, *OWN], ids=str)
def test_an_option_out_of_bounds_is_refused(name, option, value, text):
    with pytest.raises(ValueError, match=text):
        make(name, **{option: value})


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [(name, {option: value}, text) for name, option, value, text in [*BELOW_0, *OWN]] + OF_GROUPS,
    ids=str,
)
def test_a_group_out_of_bounds_is_refused(name, options, text):
    optimizer, _ = make(name)
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.add_param_group({"params": [Parameter([[1.0]])], **options})


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [(name, {option: value}, text) for name, option, value, text in [*BELOW_0, *OWN]] + OF_GROUPS,
    ids=str,
)
def test_an_option_edited_out_of_bounds_is_refused_ahead_of_the_step(name, options, text):
    optimizer, param = make(name)
    step(optimizer, param)
    optimizer.param_groups[0].update(options)
    with unchanged(optimizer), pytest.raises(ValueError, match=text):
        optimizer.step(lambda: 0.0)


@pytest.mark.parametrize("rule", array_rules.optimizers(), ids=lambda rule: rule.__name__)
def test_the_bounds_of_every_option_are_tested(rule):
    tested = {option for name, option, _, _ in [*BELOW_0, *OWN] if name == rule.__name__}
    assert set(inspect.signature(rule).parameters) - {"params"} == tested


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "0.1", None, 1j, True])
@pytest.mark.parametrize("rule", array_rules.optimizers(), ids=lambda rule: rule.__name__)
def test_what_is_no_finite_number_is_refused(rule, value):
    for option in numbers(rule):
        with pytest.raises((TypeError, ValueError), match=f"^{option} must be "):
            make(rule.__name__, **{option: value})


@pytest.mark.parametrize(("name", "options"), ALLOWED, ids=str)
def test_what_lies_on_a_bound_steps(name, options):
    optimizer, param = make(name, **options)
    for _ in range(3):
        step(optimizer, param)
    assert np.isfinite(param.numpy()).all()
