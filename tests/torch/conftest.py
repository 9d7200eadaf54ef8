"""Tensors of the host that stand for tensors of an emulated device."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu.device import gpu, torch_tensors
from tests import emulation


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
    torch = pytest.importorskip("torch")
    engine = pytest.importorskip("lucid_gpu.torch.engine")
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
