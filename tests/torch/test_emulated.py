"""Steps on a GPU: tensors of the host that stand for tensors of an emulated device."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu.device import gpu, torch_tensors
from tests import emulation
from tests.torch.support import everything, parameters, set_gradients, torch, values

ours = pytest.importorskip("lucid_gpu.torch")
from lucid_gpu.torch import engine  # noqa: E402

SHAPES = (3, 4), (5000,), (), (4, 3, 2, 2)


class Device:
    """A device, and the stream on it that is current for PyTorch.

    Attributes:
        machine: which counts.
        stream: the stream.
    """

    def __init__(self, machine):
        self.machine = machine
        self.stream = gpu.cupy().cuda.Stream(non_blocking=True)

    @contextlib.contextmanager
    def graph(self):
        """Record a graph, as ``torch.cuda.graph`` does; ``replay`` launches it."""
        found = SimpleNamespace()
        self.stream.begin_capture()
        try:
            yield found
        finally:
            recorded = self.stream.end_capture()
            found.replay = lambda: recorded.launch(self.stream)


@pytest.fixture
def device(monkeypatch):
    """Have tensors be seen as arrays of an emulated device."""
    as_host_array = torch_tensors.as_array

    def as_array(tensor):
        array = as_host_array(tensor)
        return None if array is None else array.view(emulation.arrays.ndarray)

    def zeros(home, shape, dtype):
        assert home == "cuda:0"
        return as_array(torch.zeros(shape, dtype=engine.DTYPES[dtype.name]))

    def current_stream(name):
        assert name == "cuda:0"
        return SimpleNamespace(cuda_stream=found.stream.ptr)

    with emulation.installed() as machine:
        found = Device(machine)
        monkeypatch.setattr(torch_tensors, "as_array", as_array)
        monkeypatch.setattr(torch_tensors, "home", lambda tensor: "cuda:0")
        monkeypatch.setattr(
            torch_tensors, "from_array", lambda array: torch.from_numpy(array.view(np.ndarray))
        )
        monkeypatch.setattr(engine._Inputs, "zeros", staticmethod(zeros))
        monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
        monkeypatch.setattr(gpu, "foreign_stream", lambda name, handle: found.stream)
        yield found


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
