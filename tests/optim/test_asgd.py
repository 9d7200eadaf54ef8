"""ASGD, beyond the laws: the average."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device.arrays import device_of
from lucid_gpu.optim import ASGD
from tests.stepping import host, place


def trained(device, count, **options):
    param = Parameter(place(np.array([1.0, -2.0]), device).view)
    idle = Parameter(place(np.array([3.0]), device).view)
    optimizer = ASGD([param, idle], lr=0.25, **options)
    history = []
    for number in range(count):
        param.grad = place(np.array([0.5, -0.25]) * (number + 1), device).view
        optimizer.step()
        history.append(param.numpy().copy())
    return optimizer, history


@pytest.mark.parametrize("t0", [0, 2])
def test_the_average_is_that_of_the_parameters_after_t0(t0, device):
    optimizer, history = trained(device, 7, t0=t0)
    expected = np.mean(history[t0 + 1 :], axis=0)
    np.testing.assert_allclose(host(optimizer.averages()[0]), expected, rtol=1e-14)


def test_until_then_the_average_is_the_parameter(device):
    optimizer, history = trained(device, 3)
    assert host(optimizer.averages()[0]).tolist() == history[-1].tolist()


@pytest.mark.parametrize("state_device", [None, "host"])
def test_averages_are_copies_on_the_device_of_their_parameters(state_device, accelerator):
    optimizer, _ = trained(accelerator, 2, state_device=state_device)
    averages = optimizer.averages()
    assert [device_of(average) for average in averages] == [accelerator] * 2
    before = [param.numpy().copy() for param in optimizer.param_groups[0]["params"]]
    for average in averages:
        average[...] = 7
    again = optimizer.averages()
    assert [host(one).tolist() for one in again] == [each.tolist() for each in before]


def test_an_edited_learning_rate_acts_at_once():
    optimizer, history = trained("cpu", 1, lambd=0.0)
    (param, _) = optimizer.param_groups[0]["params"]
    optimizer.param_groups[0]["lr"] = 1.0
    param.grad = np.array([1.0, 1.0])
    optimizer.step()
    assert param.numpy().tolist() == (history[-1] - 1).tolist()
