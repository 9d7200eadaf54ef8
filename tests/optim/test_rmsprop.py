"""RMSprop, beyond the laws: where PyTorch turns NaN, slots by name, ε inside the root."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.optim import RMSprop
from tests.stepping import host, place


def steps(param, optimizer, gradient, count):
    for _ in range(count):
        param.grad = gradient
        optimizer.step()
        yield optimizer.state[param]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_constant_gradient_does_not_make_the_centered_one_nan(momentum, device):
    gradient = place(np.linspace(0.1, 1, 100, dtype=np.float32), device).view
    param = Parameter(place(np.ones(100, np.float32), device).view)
    optimizer = RMSprop([param], lr=1e-9, alpha=0.9, eps=0.5, centered=True, momentum=momentum)
    lowest = 0.0
    for slots in steps(param, optimizer, gradient, 300):
        variance = host(slots["square_avg"]) - host(slots["grad_avg"]) ** 2
        lowest = min(lowest, variance.min())
    assert lowest < 0  # of which the root would be NaN
    assert np.isfinite(param.numpy()).all()


SLOTS = [
    ({}, ["square_avg"]),
    ({"centered": True}, ["square_avg", "grad_avg"]),
    ({"momentum": 0.9}, ["square_avg", "momentum_buffer"]),
    ({"centered": True, "momentum": 0.9}, ["square_avg", "grad_avg", "momentum_buffer"]),
]


@pytest.mark.parametrize(("options", "names"), SLOTS, ids=str)
def test_it_keeps_the_slots_that_it_uses_and_no_other(options, names, device):
    param = Parameter(place(np.ones(3, np.float32), device).view)
    (slots,) = steps(param, RMSprop([param], **options), place(np.ones(3, "f4"), device).view, 1)
    assert list(slots) == ["step", *names]


def test_epsilon_inside_the_root_is_added_ahead_of_it():
    param = Parameter(np.array([1.0]))
    optimizer = RMSprop([param], lr=0.1, alpha=0.75, eps=0.5, eps_inside_sqrt=True)
    list(steps(param, optimizer, np.array([2.0]), 1))
    assert param.numpy()[0] == 1 - 0.1 * 2 / np.sqrt(0.25 * 4 + 0.5)
