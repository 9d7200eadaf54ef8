"""Steps on a GPU, which is emulated."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu import optim
from tests.torch.support import everything, parameters, set_gradients, torch, values

ours = pytest.importorskip("lucid_gpu.torch")

SHAPES = (3, 4), (5000,), (), (4, 3, 2, 2)


def made():
    params = parameters(*SHAPES)
    params[3].data = params[3].data.to(memory_format=torch.channels_last)
    return params


def trained(params, optimizer, seeds):
    """Take a step with each seed's gradients and return the parameters."""
    for seed in seeds:
        set_gradients(params, seed)
        if seed % 2:
            params[3].grad = params[3].grad.to(memory_format=torch.channels_last)
        if seed == 3:
            params[1].grad = None
        optimizer.step()
    return values(params)


@pytest.fixture(scope="module")
def on_the_host():
    """The parameters after steps on the host."""
    params = made()
    return trained(params, ours.AdamW(params, lr=0.1), range(6))


def test_steps_are_those_of_the_host_to_the_bit(on_the_host, device):
    params = made()
    assert trained(params, ours.AdamW(params, lr=0.1), range(6)) == on_the_host


def test_a_step_is_one_launch_on_the_stream_of_pytorch(device):
    params = made()
    optimizer = ours.AdamW(params)
    trained(params, optimizer, [1, 5])
    device.machine.lazy = True
    set_gradients(params, 7)
    params[3].grad = params[3].grad.to(memory_format=torch.channels_last)
    before, launches = values(params), len(device.machine.record.launches)
    optimizer.step()
    assert len(device.machine.record.launches) == launches + 1
    assert values(params) == before
    device.stream.drain()
    device.machine.lazy = False
    assert values(params) != before


def test_the_optimizers_of_arrays_keep_the_state_of_tensors_on_the_host(on_the_host, device):
    params = made()
    optimizer = optim.AdamW(params, lr=0.1, state_device="host")
    assert trained(params, optimizer, range(6)) == on_the_host
    assert isinstance(optimizer.state[params[1]]["exp_avg"], np.ndarray)


def test_slots_are_tensors_of_the_shape_of_their_parameter(device):
    params = made()
    optimizer = ours.AdamW(params)
    optimizer.step()
    for param in params:
        assert optimizer.state[param]["exp_avg"].shape == param.shape
        assert isinstance(optimizer.state[param]["exp_avg"], torch.Tensor)


def test_a_first_step_in_a_graph_raises_and_steps_nothing(device):
    params = made()
    optimizer = ours.AdamW(params)
    before = values(params)
    with pytest.raises(RuntimeError, match="take one ordinary step"), device.graph():
        optimizer.step()
    assert values(params) == before
    assert not optimizer.state


def test_a_step_in_a_graph_is_recorded_and_replays_count(device):
    plain, own = made(), made()
    for params in (plain, own):
        set_gradients(params, 1)
        params[3].grad = params[3].grad.to(memory_format=torch.channels_last)
    optimizers = ours.AdamW(plain), ours.AdamW(own)
    for optimizer in optimizers:
        optimizer.step()
    before = everything(optimizers[1])
    with device.graph() as graph:
        optimizers[1].step()
    assert everything(optimizers[1]) == before
    for number in range(3):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + number)
        optimizers[0].step()
        optimizers[1].before_replay()
        graph.replay()
    assert values(plain) == values(own)
    assert optimizers[1].state[own[0]]["step"] == 4


def test_a_replay_with_other_gradients_is_refused(device):
    params = made()
    optimizer = ours.AdamW(params)
    set_gradients(params, 1)
    params[3].grad = params[3].grad.to(memory_format=torch.channels_last)
    optimizer.step()
    with device.graph():
        optimizer.step()
    params[0].grad = params[0].grad.clone()
    with pytest.raises(RuntimeError, match=r"parameter '0\.0' has another gradient"):
        optimizer.before_replay()
