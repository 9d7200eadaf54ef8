"""Adagrad, beyond the laws: what its sum begins with."""

from __future__ import annotations

import numpy as np

from lucid_gpu import Parameter
from lucid_gpu.optim import Adagrad
from tests.stepping import host, place


def test_the_sum_begins_with_the_value_of_the_group(device):
    params = [Parameter(place(np.ones(2), device).view) for _ in range(2)]
    groups = [{"params": params[:1]}, {"params": params[1:], "initial_accumulator_value": 0.5}]
    optimizer = Adagrad(groups, initial_accumulator_value=0.25)
    for param in params:
        param.grad = place(np.full(2, 2.0), device).view
    optimizer.step()
    assert [host(optimizer.state[param]["sum"]).tolist() for param in params] == [
        [4.25, 4.25],
        [4.5, 4.5],
    ]


def test_the_value_is_read_once(device):
    param = Parameter(place(np.ones(1), device).view)
    optimizer = Adagrad([param], initial_accumulator_value=0.25)
    for value in (0.25, 8.0):
        optimizer.param_groups[0]["initial_accumulator_value"] = value
        param.grad = place(np.ones(1), device).view
        optimizer.step()
    assert host(optimizer.state[param]["sum"]).tolist() == [2.25]
