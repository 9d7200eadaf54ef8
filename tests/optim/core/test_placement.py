"""offload and reload: the state goes to the host and comes back, beside the user's own work."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import numpy as np
import pytest

from lucid_gpu import Parameter, checkpoint
from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import device_of
from lucid_gpu.optim import SGD, Adam, Optimizer, OptimizerStub
from tests import rules
from tests.execution.test_cuda import make, set_gradients
from tests.execution.test_graph import capture
from tests.optim.core.placing import arrays, assert_same, assert_same_state, trained
from tests.stepping import host, place


@pytest.mark.parametrize("block", [False, True])
def test_offload_brings_the_state_to_pinned_memory_to_the_bit(accelerator, block):
    optimizer, twin = trained(accelerator), trained("cpu")
    optimizer.offload(block)
    assert optimizer.state_device == "host"
    assert all(type(array) is np.ndarray for array in arrays(optimizer))
    assert all(transfer.is_pinned(array) for array in arrays(optimizer))
    assert_same(optimizer, twin)


@pytest.mark.parametrize("block", [False, True])
def test_reload_brings_it_back_to_the_bit(accelerator, block):
    optimizer, twin = trained(accelerator), trained("cpu")
    optimizer.offload(block)
    optimizer.reload(block)
    assert optimizer.state_device is None
    assert {device_of(array) for array in arrays(optimizer)} == {accelerator}
    assert_same(optimizer, twin)


@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_training_does_not_notice(rule, device):
    options = {"momentum": 0.9} if rule is SGD else {}
    params, twins = make(device), make("cpu")
    optimizer, twin = rule(params, **options), rule(twins, **options)
    changes = [optimizer.offload, None, optimizer.reload, optimizer.offload, optimizer.reload]
    for number, change in enumerate([None, *changes, None]):
        if change is not None:
            change()
        set_gradients(params, number)
        set_gradients(twins, number)
        optimizer.step()
        twin.step()
    assert_same(optimizer, twin)


def test_layouts_are_kept(accelerator):
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    params = [
        Parameter(place(values, accelerator, layout).view) for layout in ("C", "F", "strided")
    ]
    for param in params:
        param.grad = param.data
    optimizer = SGD(params, momentum=0.9)
    optimizer.step()
    before = [transfer.layout(array) for array in arrays(optimizer)]
    for move in (optimizer.offload, optimizer.reload):
        move()
        assert [transfer.layout(array) for array in arrays(optimizer)] == before


def test_a_strided_slot_in_pinned_memory_is_brought_back_as_it_is_seen(accelerator):
    (param,) = make(accelerator, (5,))
    optimizer = SGD([param], momentum=0.9, state_device="host")
    memory = transfer.pinned_block(40).view(np.float32)
    memory[:] = np.arange(10)
    optimizer.state[param].update(step=1, momentum_buffer=memory[::2])
    optimizer.reload()
    assert host(optimizer.state[param]["momentum_buffer"]).tolist() == [0, 2, 4, 6, 8]


def test_each_may_be_called_twice(device):
    optimizer, twin = trained(device), trained("cpu")
    for move in (optimizer.reload, optimizer.offload, optimizer.offload, optimizer.reload):
        move()
    assert_same(optimizer, twin)


def test_parameters_of_the_cpu_and_of_two_gpus(emulated):
    def mixed(devices):
        return [param for device in devices for param in make(device, (7,))]

    optimizer, twin = Adam(mixed(["cpu", "cuda:0", "cuda:1"])), Adam(mixed(["cpu"] * 3))
    for move in (optimizer.offload, optimizer.reload, optimizer.offload):
        for one in (optimizer, twin):
            one.step()
        move()
    assert_same(optimizer, twin)
    optimizer.reload()
    assert [device_of(array) for array in arrays(optimizer)[::2]] == ["cpu", "cuda:0", "cuda:1"]


NO_PART_OF_A_GRAPH = {
    "offload": lambda optimizer: optimizer.offload(),
    "reload": lambda optimizer: optimizer.reload(),
    "to": lambda optimizer: optimizer.to("cpu"),
    "state_dict": lambda optimizer: optimizer.state_dict(),
    "load_state_dict": lambda optimizer: optimizer.load_state_dict({}),
}


@pytest.mark.parametrize("method", NO_PART_OF_A_GRAPH)
def test_no_move_of_state_can_be_captured_and_none_spoils_the_graph(accelerator, method):
    import cupy

    optimizer, twin = trained(accelerator), trained("cpu")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=rf"^{method}\(\) cannot be recorded in a CUDA"):
                NO_PART_OF_A_GRAPH[method](optimizer)
        finally:
            stream.end_capture()
    assert optimizer.state_device is None
    assert_same(optimizer, twin)


def test_parameters_of_the_cpu_cannot_be_moved_to_a_gpu_that_records_a_graph(accelerator):
    import cupy

    optimizer = trained("cpu")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        try:
            with pytest.raises(RuntimeError, match=r"^to\(\) cannot be recorded"):
                optimizer.to(accelerator)
        finally:
            stream.end_capture()
    assert {param.device for param in optimizer._params()} == {"cpu"}


def test_a_strided_slot_on_a_gpu_is_offloaded_as_it_is_seen(accelerator):
    (param,) = make(accelerator, (5,))
    optimizer = SGD([param], momentum=0.9)
    memory = transfer.copy(np.arange(10, dtype=np.float32), accelerator)
    optimizer.state[param].update(step=1, momentum_buffer=memory[::2])
    optimizer.offload()
    assert optimizer.state[param]["momentum_buffer"].tolist() == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("move", ["offload", "to"])
def test_a_graph_must_be_captured_anew(accelerator, move):
    optimizer = Adam(make(accelerator))
    capture(optimizer)
    optimizer.offload() if move == "offload" else optimizer.to("cpu")
    with pytest.raises(RuntimeError, match="capture the graph anew"):
        optimizer.before_replay()


class Momentum(Optimizer):
    """An optimizer of one's own, whose state is a list of pairs."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None):
        for param in self.param_groups[0]["params"]:
            with gpu.on(param.device):
                old = self.state[param].get("pairs", [(0, param.grad * 0)])[0][1]
                new = 0.5 * old + param.grad
                self.state[param]["pairs"] = [(1, new)]
                param.data -= 0.1 * new


def test_an_optimizer_of_ones_own_needs_reload_first(accelerator):
    optimizer, twin = Momentum(make(accelerator)), Momentum(make("cpu"))
    for one in (optimizer, twin):
        one.step()
    optimizer.offload()
    before = [param.numpy() for param in optimizer._params()]
    with pytest.raises(RuntimeError, match=r"Momentum is in host memory: call reload\(\) before"):
        optimizer.step()
    for param, values in zip(optimizer._params(), before, strict=True):
        np.testing.assert_array_equal(param.numpy(), values)
    optimizer.reload()
    for one in (optimizer, twin):
        one.step()
    for ours, theirs in zip(optimizer._params(), twin._params(), strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


def test_an_optimizer_of_ones_own_steps_on_the_cpu_as_ever():
    optimizer = Momentum(make("cpu"))
    optimizer.offload()
    optimizer.step()


def test_an_optimizer_of_ones_own_that_has_no_state_yet_steps_on(accelerator):
    optimizer = Momentum(make(accelerator))
    optimizer.offload()
    optimizer.step()
    optimizer.step()


def test_an_optimizer_of_ones_own_may_keep_arrays_on_the_host(accelerator):
    optimizer = Momentum(make(accelerator))
    optimizer.step()
    for slots in optimizer.state.values():
        slots["history"] = np.ones(3)
    optimizer.step()


def test_reload_lets_go_of_the_windows_to_make_room_for_the_state(accelerator):
    optimizer = trained(accelerator, state_device="host")
    executor = weakref.ref(optimizer._prepared.streamed[0])
    optimizer.reload(block=True)
    gc.collect()
    assert executor() is None


def test_a_hook_may_bring_the_state_back(accelerator):
    optimizer = Momentum(make(accelerator))
    optimizer.step()
    optimizer.offload()
    optimizer.register_step_pre_hook(lambda own, args, kwargs: own.reload())
    optimizer.step()


def test_an_array_in_two_slots_stays_one(accelerator):
    (param,) = make(accelerator, (4,))
    optimizer = Momentum([param])
    optimizer.state[param]["a"] = shared = transfer.copy(np.ones(3), accelerator)
    optimizer.state[param]["b"] = [shared]
    for move in (optimizer.offload, optimizer.reload):
        move()
        assert optimizer.state[param]["a"] is optimizer.state[param]["b"][0]


def test_state_of_what_is_on_no_gpu_stays_where_it_is(accelerator):
    text = Parameter("prompt")
    optimizer = OptimizerStub([text])
    optimizer.state[text]["embedding"] = embedding = transfer.copy(np.ones(3), accelerator)
    optimizer.offload()
    assert optimizer.state[text]["embedding"] is embedding


@pytest.mark.parametrize("state_device", [None, "host"])
def test_a_slot_on_a_gpu_for_a_parameter_on_the_cpu_is_refused(accelerator, state_device):
    (param,) = make("cpu", (4,))
    optimizer = SGD([param], momentum=0.9, state_device=state_device)
    optimizer.step()
    optimizer.state[param]["momentum_buffer"] = transfer.copy(np.ones(4, np.float32), accelerator)
    with pytest.raises(ValueError, match=r"optimizer.to\(device\) moves all"):
        optimizer.step()
    assert optimizer.state[param]["step"] == 1


def test_a_stub_has_nothing_to_move(accelerator):
    optimizer = OptimizerStub(make(accelerator))
    optimizer.offload()
    optimizer.step()
    optimizer.reload()


def test_a_state_dict_is_the_same(accelerator):
    optimizer, twin = trained(accelerator), trained("cpu")
    optimizer.offload()
    ours, theirs = optimizer.state_dict(), twin.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    assert {device_of(ours["state"][number]["exp_avg"]) for number in (0, 1)} == {"cpu"}
    other = Adam(make(accelerator))
    other.load_state_dict(ours)
    assert {device_of(array) for array in arrays(other)} == {accelerator}
    assert_same_state(other, twin)


def test_what_is_loaded_while_offloaded_stays_on_the_host(accelerator):
    saved = trained("cpu").state_dict()
    optimizer, twin = Adam(make(accelerator), state_device="host"), Adam(make("cpu"))
    for one in (optimizer, twin):
        one.load_state_dict(saved)
    assert all(type(array) is np.ndarray for array in arrays(optimizer))
    for one in (optimizer, twin):
        one.step()
    assert_same(optimizer, twin)
    optimizer.load_state_dict(saved)
    optimizer.reload()
    assert {device_of(array) for array in arrays(optimizer)} == {accelerator}
    np.testing.assert_array_equal(host(arrays(optimizer)[0]), saved["state"][0]["exp_avg"])


def test_a_checkpoint_does_not_depend_on_the_place(accelerator, tmp_path):
    optimizer, twin = trained(accelerator), trained("cpu")
    optimizer.offload()
    checkpoint.save(tmp_path / "one", optimizer)
    other = Adam(make(accelerator), state_device="host")
    checkpoint.load(tmp_path / "one", into=other)
    assert_same_state(other, twin)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_has_its_state_in_the_same_place(emulated, clone):
    optimizer, twin = trained("cuda:0"), trained("cpu")
    optimizer.offload()
    state = pickle.loads(pickle.dumps(optimizer.state_dict()))
    other = clone(Adam(make("cpu"), state_device="host"))
    assert other.state_device == "host"
    other.to("cuda:0")
    other.load_state_dict(state)
    assert_same_state(other, twin)


@pytest.mark.parametrize("moves", [["cpu"], ["cpu", "cuda:0"], ["cuda:1"], ["cuda:1", "cuda:0"]])
def test_state_on_the_host_stays_there_when_parameters_move(emulated, moves):
    optimizer, twin = trained("cuda:0", state_device="host"), trained("cpu")
    for device in moves:
        optimizer.to(device)
        assert all(type(array) is np.ndarray for array in arrays(optimizer))
        for one in (optimizer, twin):
            one.step()
    assert_same(optimizer, twin)


def test_state_made_on_the_cpu_is_pinned_when_its_parameters_move_to_a_gpu(accelerator):
    optimizer, twin = trained("cpu", state_device="host"), trained("cpu")
    optimizer.to(accelerator)
    for one in (optimizer, twin):
        one.step()
    assert all(transfer.is_pinned(array) for array in arrays(optimizer))
    assert_same(optimizer, twin)


def test_nothing_is_moved_if_there_is_no_memory_for_it(accelerator, monkeypatch):
    optimizer, twin = trained(accelerator), trained("cpu")

    def fail(*args, **options):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "pinned_block", fail)
        with pytest.raises(MemoryError):
            optimizer.offload()
    assert optimizer.state_device is None
    assert_same(optimizer, twin)
    optimizer.offload(block=True)
    with monkeypatch.context() as patch:
        patch.setattr(gpu.cupy(), "empty", fail)
        with pytest.raises(MemoryError):
            optimizer.reload()
    assert optimizer.state_device == "host"
    for one in (optimizer, twin):
        one.step()
    assert_same(optimizer, twin)


@pytest.mark.parametrize("state_device", [None, "host"])
def test_an_optimizer_that_is_dropped_frees_its_state_at_once(device, state_device):
    optimizer = trained(device, state_device=state_device)
    slots = [weakref.ref(array) for array in arrays(optimizer)]
    gc.disable()
    try:
        del optimizer
        assert all(slot() is None for slot in slots)
    finally:
        gc.enable()
