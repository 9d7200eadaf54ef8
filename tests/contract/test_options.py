"""Row 18e: an option may be a number of any kind; it is stored as Python's."""

from __future__ import annotations

import decimal
import fractions
import json

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu
from tests.contract.rules.lion import Lion
from tests.contract.support import Foreign, trained, unchanged

LR = float(np.float32(1e-3))


def of_framework(name, make):
    def number(value):
        return make(pytest.importorskip(name), value)

    return number


KINDS = {
    "NumPy float32": np.float32,
    "NumPy float64": np.float64,
    "NumPy array": lambda value: np.array(value, np.float32),
    "fraction": fractions.Fraction,
    "decimal": decimal.Decimal,
    "CuPy array": lambda value: gpu.cupy().array(value, np.float32),
    "PyTorch tensor": of_framework("torch", lambda torch, value: torch.tensor(value)),
    "PyTorch tensor with a gradient": of_framework(
        "torch", lambda torch, value: torch.tensor(value, requires_grad=True)
    ),
    "jax array": of_framework("jax.numpy", lambda jnp, value: jnp.float32(value)),
}
BETAS = {
    **{kind: lambda pair, make=make: tuple(map(make, pair)) for kind, make in KINDS.items()},
    "list of NumPy's": lambda pair: [np.float32(value) for value in pair],
    "one NumPy array": lambda pair: np.array(pair, np.float32),
    "one PyTorch tensor": lambda pair: pytest.importorskip("torch").tensor(pair),
}
PAIR = (0.5, 0.75)


def param():
    return trained([1.0, -2.0], [0.5, 3.0], "cpu", name="w", dtype=np.float64)


def constructed(rule, **options):
    return rule([param()], **options)


def added(rule, **options):
    optimizer = rule([("other", Foreign(np.ones(1)))])
    optimizer.add_param_group({"params": [param()], **options})
    return optimizer


def loaded(rule, **options):
    optimizer = rule([param()])
    state_dict = optimizer.state_dict()
    state_dict["param_groups"][0].update(options)
    optimizer.load_state_dict(state_dict)
    return optimizer


WAYS = {way.__name__: way for way in (constructed, added, loaded)}


def steps(optimizer):
    """Return the bits of the parameter after each of two steps."""
    own = optimizer.param_groups[-1]["params"][0]
    history = []
    for _ in range(2):
        optimizer.step()
        history.append(own.data.tobytes())
    return history


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam, Lion], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_number_of_any_kind_is_stored_as_pythons(emulated, kind, way, rule):
    """Row 18e of docs/contract.md."""
    optimizer = WAYS[way](rule, lr=KINDS[kind](LR))
    stored = optimizer.param_groups[-1]["lr"]
    assert (type(stored), stored) == (float, LR)
    assert steps(optimizer) == steps(WAYS[way](rule, lr=LR))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BETAS)
def test_so_are_the_numbers_of_a_pair(emulated, kind, way):
    """Row 18e of docs/contract.md."""
    optimizer = WAYS[way](optim.Adam, betas=BETAS[kind](PAIR))
    stored = optimizer.param_groups[-1]["betas"]
    assert list(stored) == list(PAIR)
    assert {type(stored), *map(type, stored)} <= {tuple, list, float}
    assert steps(optimizer) == steps(WAYS[way](optim.Adam, betas=PAIR))


def test_the_defaults_are_pythons_too():
    betas = (np.float32(0.5), np.array(0.75))
    optimizer = optim.Adam([param()], lr=np.float32(LR), betas=betas, eps=np.float16(0.5))
    assert json.loads(json.dumps(optimizer.defaults))["lr"] == LR
    assert all(type(optimizer.defaults[name]) is float for name in ("lr", "eps"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_option_is_used_as_pythons(emulated, kind):
    """Row 18e of docs/contract.md."""
    one, two = (optim.Adam([param()], lr=0.5) for _ in range(2))
    assert steps(one) == steps(two)
    one.param_groups[0]["lr"] = KINDS[kind](LR)
    two.param_groups[0]["lr"] = LR
    assert steps(one) == steps(two)


@pytest.mark.parametrize("kind", BETAS)
def test_an_edited_pair_is_used_as_pythons(emulated, kind):
    """Row 18e of docs/contract.md."""
    one, two = (optim.Adam([param()], lr=0.5) for _ in range(2))
    assert steps(one) == steps(two)
    one.param_groups[0]["betas"] = BETAS[kind](PAIR)
    two.param_groups[0]["betas"] = PAIR
    assert steps(one) == steps(two)


def test_whole_numbers_stay_whole():
    optimizer = optim.SGD([param()], lr=np.int8(3), momentum=np.array(1))
    assert [repr(optimizer.param_groups[0][name]) for name in ("lr", "momentum")] == ["3", "1"]


def test_the_callers_dicts_are_left_as_they_are():
    group = {"params": [param()], "lr": np.float32(LR)}
    optimizer = optim.SGD([group])
    saved = optimizer.state_dict()
    saved["param_groups"][0]["lr"] = np.array(LR)
    optimizer.load_state_dict(saved)
    assert type(group["lr"]) is np.float32
    assert type(saved["param_groups"][0]["lr"]) is np.ndarray


NO_NUMBERS = {
    "a bool of NumPy": lambda: np.True_,
    "an array of a bool": lambda: np.array(True),
    "a bool of PyTorch": of_framework("torch", lambda torch, _: torch.tensor(True)),
    "a complex number of NumPy": lambda: np.complex64(1),
    "a wide complex number of NumPy": lambda: np.clongdouble(1),
    "a masked number": lambda: np.ma.masked,
    "a text of NumPy": lambda: np.str_("0.5"),
    "an array of one number": lambda: np.ones(1),
    "a parameter": lambda: Parameter(0.5),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_what_is_no_real_number_is_refused(kind):
    value = NO_NUMBERS[kind](0) if kind == "a bool of PyTorch" else NO_NUMBERS[kind]()
    optimizer = optim.SGD([param()])
    with unchanged(optimizer), pytest.raises(TypeError, match="lr must be a number, not "):
        optimizer.add_param_group({"params": [("b", Foreign(np.ones(1)))], "lr": value})
