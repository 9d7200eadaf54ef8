"""Staged tables: the host runs ahead of the device, and nothing that is still read is let go."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from lucid_gpu.device import keep, staged
from lucid_gpu.optim import SGD, Adam
from tests.emulation.machine import Record
from tests.execution.test_cuda import crowd, groups_of_one, make, set_gradients


@pytest.mark.parametrize("make_own", [make, partial(crowd, SGD)], ids=["carried", "table"])
def test_the_host_may_run_ahead_of_the_device(make_own, emulated):
    params, twins = make_own(device="cuda:0"), make_own(device="cpu")
    optimizers = SGD(groups_of_one(params)), SGD(groups_of_one(twins))
    emulated.lazy = True
    for number in range(3 * staged.STAGES):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 1.0 / (number + 1)
            optimizer.step()
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_the_host_waits_only_when_it_is_a_whole_round_of_stages_ahead(emulated):
    optimizer = Adam(groups_of_one(crowd(Adam, "cuda:0")))
    emulated.lazy = True
    emulated.record = Record()
    for _ in range(staged.STAGES):
        optimizer.step()
    assert emulated.record.synchronizations == 0
    optimizer.step()
    assert emulated.record.synchronizations == 1


@pytest.mark.parametrize("replace", [False, True])
def test_the_device_reads_the_stages_of_gradients_that_come_and_go(emulated, replace):
    """Also of a plan that was replaced, as when a state was loaded."""
    params, twins = make("cuda:0", (4, 4)), make("cpu", (4, 4))
    optimizers = SGD(params, lr=1.0), SGD(twins, lr=1.0)
    emulated.lazy = True
    for number in range(9):
        for own, optimizer in zip((params, twins), optimizers, strict=True):
            grads = [param.grad for param in own]
            own[number % 2].grad = None
            optimizer.param_groups[0]["lr"] = 1.0 / (number + 1)
            if replace:
                optimizer.load_state_dict(optimizer.state_dict())
            optimizer.step()
            for param, grad in zip(own, grads, strict=True):
                param.grad = grad
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_stages_that_were_read_go_back_to_the_pool(emulated):
    params = make("cuda:0", (4, 4))
    optimizer = SGD(params, lr=1.0)
    for number in range(9):
        set_gradients(params, number)
        params[number % 2].grad = None
        optimizer.step()
    assert len(keep._kept) <= staged.STAGES
