"""Rprop, beyond the laws: step sizes of each element."""

from __future__ import annotations

import numpy as np

from lucid_gpu import Parameter
from lucid_gpu.optim import Rprop
from tests.stepping import host, place


def sizes(device, gradients, rates=(), **options):
    param = Parameter(place(np.zeros(len(gradients[0])), device).view)
    optimizer = Rprop([param], **options)
    for number, gradient in enumerate(gradients):
        if rates:
            optimizer.param_groups[0]["lr"] = rates[number]
        param.grad = place(np.array(gradient), device).view
        optimizer.step()
    return host(optimizer.state[param]["step_size"]).tolist()


def test_step_sizes_begin_with_the_learning_rate_and_do_not_follow_it(device):
    gradients = [[1.0], [1.0], [1.0]]
    expected = sizes(device, gradients, lr=0.25, etas=(0.5, 2.0))
    assert sizes(device, gradients, [0.25, 8.0, 8.0], etas=(0.5, 2.0)) == expected == [1.0]


def test_each_element_has_a_step_size_of_its_own(device):
    gradients = [[1.0, 1.0, 1.0, -1.0], [1.0, -1.0, 0.0, -1.0]]
    assert sizes(device, gradients, lr=0.25, etas=(0.5, 2.0)) == [0.5, 0.125, 0.25, 0.5]


def test_step_sizes_stay_in_their_bounds(device):
    gradients = [[1.0, 1.0]] + [[1.0, (-1.0) ** i] for i in range(1, 9)]
    bounds = {"lr": 0.25, "etas": (0.5, 2.0), "step_sizes": (0.2, 0.75)}
    assert sizes(device, gradients, **bounds) == [0.75, 0.2]
