"""What a step reads anew, and what it may keep from the last one."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import transfer
from lucid_gpu.optim import SGD


def trained(device, count):
    """Parameters of value 1 with gradients of 1."""
    params = []
    for _ in range(count):
        params.append(Parameter(np.ones(1, np.float32), device=device))
        params[-1].grad = transfer.copy(np.ones(1, np.float32), device)
    return params


def values(params):
    return [param.numpy().item() for param in params]


def test_each_of_many_groups_follows_its_own_options_at_every_step(device):
    params = trained(device, 64)
    optimizer = SGD([{"params": [param]} for param in params], lr=0.0)
    expected = np.ones(64)
    for step in range(3):
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = (number + step) / 256
            expected[number] -= group["lr"]
        optimizer.step()
    assert values(params) == expected.tolist()


def test_a_group_may_be_replaced_by_another_dict(device):
    one, two = trained(device, 2)
    optimizer = SGD([{"params": [one]}, {"params": [two]}], lr=0.5)
    optimizer.step()
    optimizer.param_groups[1] = {**optimizer.param_groups[1]}
    optimizer.step()
    optimizer.param_groups[1]["lr"] = 0.25
    optimizer.step()
    assert values([one, two]) == [-0.5, -0.25]


def test_parameters_may_move_from_one_group_to_another(device):
    params = trained(device, 3)
    optimizer = SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.25}], lr=0.5)
    optimizer.step()
    few, many = optimizer.param_groups
    for key in ("params", "param_names"):
        few[key].append(many[key].pop(0))
    optimizer.step()
    assert values(params) == [0.0, 0.25, 0.5]


def test_an_edited_option_is_checked_in_every_group_before_anything_steps(device):
    params = trained(device, 3)
    optimizer = SGD([{"params": [param]} for param in params], lr=0.5)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.param_groups[2]["lr"] = -1.0
    with pytest.raises(ValueError, match=r"lr must be >= 0, not -1\.0"):
        optimizer.step()
    assert values(params) == [0.5] * 3
    assert [optimizer.state[param]["step"] for param in params] == [1] * 3
