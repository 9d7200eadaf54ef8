"""An optimizer of parameters on the CPU never touches CUDA, whatever else uses it meanwhile."""

from __future__ import annotations

import os
import sys
import types
import warnings

import numpy as np
import pytest

from lucid_gpu import Parameter, checkpoint
from lucid_gpu.device import gpu
from lucid_gpu.optim import Adam
from tests import rules
from tests.execution.test_cuda import make, set_gradients
from tests.optim.core.placing import arrays


class Untouchable(types.ModuleType):
    """CuPy as imported, where whatever is looked up beyond its array type is noted."""

    def __init__(self, ndarray):
        super().__init__("cupy")
        self.ndarray = ndarray
        self.touched = []

    def __getattr__(self, name):
        self.touched.append(name)
        raise RuntimeError(f"cudaErrorInitializationError: cupy.{name} was called")


@pytest.fixture
def cupy(emulated, monkeypatch):
    """CuPy that some other part of the program has imported."""
    module = Untouchable(sys.modules["cupy"].ndarray)
    monkeypatch.setitem(sys.modules, "cupy", module)
    gpu._probe.cache_clear()
    return module


def use(rule, folder):
    """Do all that an optimizer can, but for going to a GPU."""
    params = make("cpu", (5, 4099))
    optimizer = rule(params, lr=0.1)
    for number in range(3):
        set_gradients(params, number)
        optimizer.step()
    params[0].grad = None
    params[1].data = params[1].data.copy()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.to("cpu")
    optimizer.offload()
    optimizer.step()
    optimizer.reload()
    optimizer.explain()
    checkpoint.save(folder / "one", {"optimizer": optimizer, "params": params})
    checkpoint.load(folder / "one", into={"optimizer": optimizer, "params": params})
    optimizer.step()
    assert np.isfinite(params[0].data).all()


@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_no_call_of_it_reaches_cuda(rule, cupy, tmp_path):
    use(rule, tmp_path)
    assert cupy.touched == []


def test_it_steps_in_a_forked_child_where_cuda_is_lost(cupy, tmp_path):
    with warnings.catch_warnings():  # Python and JAX warn of threads, of which the child uses none
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        status = 1
        try:
            use(Adam, tmp_path)
            status = 2 if cupy.touched else 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_it_steps_while_a_stream_records_a_graph(emulated):
    import cupy

    params = make("cpu")
    optimizer = Adam(params)
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        stream.end_capture()
    assert optimizer.state[params[0]]["step"] == 1


def test_its_arrays_are_made_on_no_stream(cupy):
    param = Parameter([1.0])
    param.grad = param.data
    optimizer = Adam([param])
    optimizer.step()
    assert param.made is None
    assert optimizer.state.made == set()
    assert all(type(array) is np.ndarray for array in arrays(optimizer))
