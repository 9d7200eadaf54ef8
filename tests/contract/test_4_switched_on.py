"""Rows 24a and 24b of docs/contract.md: state of what was switched on, and since when."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from tests.contract.support import (
    MyOptimizer,
    array,
    everything,
    host,
    picture,
    trained,
    unchanged,
    values,
)

SWITCHES = {
    "momentum": (optim.SGD, {"momentum": 0.9}, {"momentum_buffer"}),
    "amsgrad": (optim.Adam, {"amsgrad": True}, {"max_exp_avg_sq"}),
    "raw amsgrad": (optim.AdamW, {"amsgrad": "raw"}, {"max_exp_avg_sq"}),
}
every_switch = pytest.mark.parametrize("switch", SWITCHES)


def switched_on(device, switch, steps=2):
    """An optimizer whose group asks for slots that no step has made yet."""
    rule, options, _ = SWITCHES[switch]
    optimizer = rule([trained([1.0, 2.0], [0.5, 0.25], device, name="w")], lr=0.1)
    for _ in range(steps):
        optimizer.step()
    optimizer.param_groups[0].update(options)
    return optimizer


@every_switch
def test_an_optimizer_loads_its_own_state_after_a_switch(device, switch):
    """Row 24a of docs/contract.md."""
    optimizer = switched_on(device, switch)
    saved = optimizer.state_dict()
    assert not SWITCHES[switch][2] & saved["state"][0].keys()
    before = everything(optimizer)
    optimizer.load_state_dict(saved)
    assert everything(optimizer) == before


@every_switch
def test_a_new_optimizer_goes_on_as_the_one_that_was_saved(device, switch):
    """Row 24a of docs/contract.md."""
    optimizer = switched_on(device, switch)
    (param,) = optimizer.param_groups[0]["params"]
    twin = Parameter(host(param).copy(), name="w", device=device)
    twin.grad = param.grad
    other = type(optimizer)([twin])
    other.load_state_dict(optimizer.state_dict())
    for _ in range(2):
        optimizer.step()
        other.step()
    assert picture(twin) == picture(param)
    assert picture(dict(other.state[twin])) == picture(dict(optimizer.state[param]))
    assert SWITCHES[switch][2] <= dict(other.state[twin]).keys()


@every_switch
def test_nothing_that_was_saved_is_lost_without_strictness(device, switch):
    """Row 24a of docs/contract.md."""
    optimizer = switched_on(device, switch)
    before = everything(optimizer)
    optimizer.load_state_dict(optimizer.state_dict(), strict=False)
    assert everything(optimizer) == before


@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "step"])
def test_a_slot_that_every_variant_has_may_not_lack(device, name):
    """Row 24a of docs/contract.md."""
    optimizer = switched_on(device, "amsgrad")
    saved = optimizer.state_dict()
    del saved["state"][0][name]
    with unchanged(optimizer), pytest.raises(ValueError, match=f"slot '{name}' is missing"):
        optimizer.load_state_dict(saved)


class Averaging(MyOptimizer):
    """An optimizer of one's own that declares its slots."""

    slots = ("average",)

    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            self.state[param].update(step=1, average=param.data.copy())


def test_strict_loading_holds_for_an_optimizer_that_is_not_fused(device):
    """Row 24a of docs/contract.md."""
    optimizer = Averaging([trained([1.0, 2.0], [1.0, 1.0], device)])
    optimizer.step()
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    for wrong, message in (
        ({"average": array([1.0], device)}, "slot 'average' has shape"),
        ({"average": 1.0}, "slot 'average' is a float"),
        ({"median": saved["state"][0]["average"]}, "slot 'median' is unknown"),
        ({"step": -1}, "slot 'step' must be an int >= 0"),
    ):
        edited = copy.copy(saved)
        edited["state"] = {0: {**saved["state"][0], **wrong}}
        with unchanged(optimizer), pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(edited)


def course(optimizer, param, gradients, device):
    """Return the parameter after a step with each gradient."""
    seen = []
    for gradient in gradients:
        param.grad = array([gradient], device, np.float64)
        optimizer.step()
        seen += values(param)
    return seen


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_the_first_buffer_is_the_gradient_whenever_momentum_is_switched_on(device, steps):
    """Row 24b of docs/contract.md."""
    param = Parameter(np.array([1.0 + 0.05 * steps]), device=device)
    optimizer = optim.SGD([param], lr=0.1, dampening=0.5)
    course(optimizer, param, [0.5] * steps, device)
    optimizer.param_groups[0]["momentum"] = 0.9
    # b: 0.5, then 0.9 · 0.5 + 0.5 · 1 = 0.95, then 0.9 · 0.95 + 0.5 · 0.2 = 0.955
    expected = [0.95, 0.855, 0.7595]
    np.testing.assert_allclose(
        course(optimizer, param, [0.5, 1.0, 0.2], device), expected, rtol=1e-12
    )
    assert optimizer.state[param]["step"] == steps + 3


def test_the_first_buffer_holds_the_decay(device):
    """Row 24b of docs/contract.md."""
    param = Parameter(np.array([1.0]), device=device)
    optimizer = optim.SGD([param], lr=0.1, weight_decay=0.2, dampening=0.5)
    course(optimizer, param, [0.5], device)
    optimizer.param_groups[0]["momentum"] = 0.9
    # θ = 1 − 0.1 · (0.5 + 0.2) = 0.93; b = 0.5 + 0.2 · 0.93 = 0.686
    np.testing.assert_allclose(course(optimizer, param, [0.5], device), [0.8614], rtol=1e-12)
    buffer = host(optimizer.state[param]["momentum_buffer"])
    np.testing.assert_allclose(buffer, [0.686], rtol=1e-12)


def test_a_buffer_that_is_there_goes_on_after_momentum_was_away(device):
    """Row 24b of docs/contract.md."""
    param = Parameter(np.array([1.0]), device=device)
    optimizer = optim.SGD([param], lr=0.1, momentum=0.5)
    seen = course(optimizer, param, [1.0], device)
    optimizer.param_groups[0]["momentum"] = 0.0
    seen += course(optimizer, param, [1.0], device)
    optimizer.param_groups[0]["momentum"] = 0.5
    seen += course(optimizer, param, [1.0], device)
    np.testing.assert_allclose(seen, [0.9, 0.8, 0.65], rtol=1e-12)


def test_each_parameter_of_a_group_begins_at_its_own_first_gradient(device):
    """Row 24b of docs/contract.md."""
    early, late = (Parameter(np.array([1.0]), device=device) for _ in range(2))
    optimizer = optim.SGD([early, late], lr=0.1, momentum=0.5, dampening=0.5)
    course(optimizer, early, [1.0], device)
    late.grad = array([1.0], device, np.float64)
    seen = course(optimizer, early, [1.0, 1.0], device)
    np.testing.assert_allclose(seen, [0.8, 0.7], rtol=1e-12)
    np.testing.assert_allclose(values(late), [0.8], rtol=1e-12)
    buffers = [values_of(optimizer, param) for param in (early, late)]
    np.testing.assert_allclose(buffers, [[1.0], [1.0]], rtol=1e-12)


def values_of(optimizer, param):
    return host(optimizer.state[param]["momentum_buffer"]).tolist()


def test_a_first_buffer_that_waits_in_a_state_dict_is_the_gradient(device):
    """Rows 24a and 24b of docs/contract.md."""
    optimizer = switched_on(device, "momentum")
    (param,) = optimizer.param_groups[0]["params"]
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["dampening"] = 0.5
    optimizer.step()
    assert values_of(optimizer, param) == [0.5, 0.25]
