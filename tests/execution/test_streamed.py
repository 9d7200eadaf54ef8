"""State in host memory: a step that brings it to the device and back is a step like any other."""

from __future__ import annotations

import gc
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter
from lucid_gpu.device import transfer
from lucid_gpu.execution import plan, streamed
from lucid_gpu.optim import SGD, Adam
from tests import rules
from tests.emulation.machine import Record
from tests.execution.test_cuda import make, set_gradients
from tests.execution.test_graph import capture
from tests.kernels.test_host import LAYOUTS, assert_equal_on_both, every_case, every_dtype, tensor

SMALLEST_WINDOW = 2 * plan.CHUNK_ELEMENTS * 4
"""Bytes of one chunk of Adam's two slots."""


@pytest.fixture
def small_windows(monkeypatch):
    """Let tensors of thousands of elements take several windows, more than there are berths."""
    monkeypatch.setattr(streamed, "WINDOW_BYTES", 3 * SMALLEST_WINDOW)


@every_case
@every_dtype
@pytest.mark.usefixtures("small_windows")
def test_every_rule_steps_to_the_bit(case, dtype, accelerator, rng):
    tensors = [tensor(rng, shape, dtype) for shape in [(), (0,), (7,), (3, 5), (9001,), (60_000,)]]
    tensors += [tensor(rng, (11, 6), dtype, layouts) for layouts in LAYOUTS]
    rule = partial(case.rule, state_device="host")
    assert_equal_on_both(rule, [(case.options, tensors)], accelerator)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_any_tensors_in_any_windows(accelerator, monkeypatch, data):
    chunks = data.draw(st.integers(1, 4))
    monkeypatch.setattr(streamed, "WINDOW_BYTES", chunks * SMALLEST_WINDOW)
    size = st.integers(0, 9) | st.integers(4090, 4100) | st.integers(0, 30_000)
    layout = st.sampled_from(["C", "F", "strided", 0, 1, 2, 3])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    tensors = [
        tensor(rng, (data.draw(size),), "float32", data.draw(st.tuples(layout, layout)), count=2)
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    rule = partial(Adam, state_device="host")
    assert_equal_on_both(rule, [({}, tensors)], accelerator)


@pytest.mark.usefixtures("small_windows")
def test_variants_with_and_without_slots_step_together(accelerator, rng):
    groups = [
        ({"momentum": 0.0}, [tensor(rng, (9000,), "float32")]),
        ({"momentum": 0.9}, [tensor(rng, (20_000,), "float32"), tensor(rng, (5,), "float32")]),
        ({"momentum": 0.0}, [tensor(rng, (3,), "float32")]),  # a gap between neighbours
        ({"momentum": 0.9}, [tensor(rng, (7,), "float32")]),
    ]
    assert_equal_on_both(partial(SGD, state_device="host"), groups, accelerator)


def test_slots_live_in_pinned_memory_side_by_side(accelerator):
    params = make(accelerator, (5, 4099, 3))
    optimizer = Adam(params, state_device="host")
    optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        slots = [optimizer.state[param][name] for param in params]
        assert all(type(slot) is np.ndarray and transfer.is_pinned(slot) for slot in slots)
        starts = [slot.ctypes.data for slot in slots]
        assert np.diff(starts).tolist() == [slot.nbytes for slot in slots[:-1]]


def test_a_window_is_one_copy_of_each_slot_there_and_back(emulated):
    optimizer = Adam(make("cuda:0", (100,) * 50), state_device="host")
    optimizer.step()
    emulated.record = Record()
    optimizer.step()
    assert emulated.record.downloads == [50 * 400] * 2
    assert emulated.record.uploads == [50 * 400] * 2
    assert len(emulated.record.launches) == 1


@pytest.mark.usefixtures("small_windows")
def test_a_step_neither_waits_nor_allocates_after_the_first(emulated):
    params = make("cuda:0", (60_000, 5))
    optimizer = Adam(params, state_device="host")
    optimizer.step()
    emulated.lazy = True
    set_gradients(params, 3)
    emulated.record = Record()
    for number in range(3):
        optimizer.param_groups[0]["lr"] = 1 / (number + 2)
        optimizer.step()
    assert emulated.record.allocations == emulated.record.synchronizations == 0
    assert len(emulated.record.launches) == 3 * 5
    optimizer.offload()  # waits, while the gradients are still there


@pytest.mark.usefixtures("small_windows")
def test_the_device_holds_no_more_than_a_few_windows(emulated, monkeypatch):
    import cupy

    params = make("cuda:0", (200_000,))
    sizes = []
    empty = cupy.empty
    monkeypatch.setattr(cupy, "empty", lambda *args: sizes.append(args[0]) or empty(*args))
    Adam(params, state_device="host").step()
    assert sizes == [3 * SMALLEST_WINDOW] * streamed.WINDOWS


@pytest.mark.usefixtures("small_windows")
def test_a_host_that_runs_ahead_overwrites_nothing(emulated):
    emulated.lazy = True
    params, twins = make("cuda:0", (60_000, 5)), make("cpu", (60_000, 5))
    optimizer, twin = Adam(params, state_device="host"), Adam(twins)
    for number in range(5):
        set_gradients(params, number)
        set_gradients(twins, number)
        for one in (optimizer, twin):
            one.param_groups[0]["lr"] = 0.1 / (number + 1)
            one.step()
    for param, other in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), other.data)


def test_reading_a_slot_waits_for_the_step(emulated):
    (param,), (other,) = make("cuda:0", (50,)), make("cpu", (50,))
    optimizer, twin = SGD([param], momentum=0.9, state_device="host"), SGD([other], momentum=0.9)
    emulated.lazy = True
    slots = optimizer.state[param]
    for _ in range(2):
        optimizer.step()
        twin.step()
        np.testing.assert_array_equal(
            slots["momentum_buffer"], twin.state[other]["momentum_buffer"]
        )


def test_gradients_come_and_go(accelerator):
    params, twins = make(accelerator, (30, 40, 50)), make("cpu", (30, 40, 50))
    optimizer, twin = Adam(params, state_device="host"), Adam(twins)
    for number in range(6):
        for own in (params, twins):
            set_gradients(own, number)
            own[number % 3].grad = None
        optimizer.step()
        twin.step()
    for param, other in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), other.data)
        for name, value in twin.state[other].items():
            np.testing.assert_array_equal(optimizer.state[param][name], value)


@pytest.mark.parametrize("where", ["pageable", "device", "strided"])
def test_a_slot_that_a_user_sets_is_brought_to_pinned_memory(accelerator, where):
    (param,), (other,) = make(accelerator, (30,)), make("cpu", (30,))
    optimizer, twin = SGD([param], momentum=0.9, state_device="host"), SGD([other], momentum=0.9)
    value = np.linspace(0, 1, 60, dtype=np.float32)[::2]
    for one, own in ((optimizer, param), (twin, other)):
        one.state[own]["step"] = 1
        one.state[own]["momentum_buffer"] = value if where == "strided" else value.copy()
    if where == "device":
        optimizer.state[param]["momentum_buffer"] = transfer.copy(value, accelerator)
    optimizer.step()
    twin.step()
    assert transfer.is_pinned(optimizer.state[param]["momentum_buffer"])
    np.testing.assert_array_equal(param.numpy(), other.data)


def test_a_step_cannot_be_captured(accelerator):
    optimizer = Adam(make(accelerator), state_device="host")
    with pytest.raises(RuntimeError, match=r"call reload\(\) and take one ordinary step"):
        capture(optimizer)


def test_an_optimizer_that_is_dropped_waits_for_its_copies(emulated):
    params = make("cuda:0", (50,))
    optimizer = SGD(params, momentum=0.9, state_device="host")
    optimizer.step()
    slot = optimizer.state[params[0]]["momentum_buffer"]
    before = slot.copy()
    emulated.lazy = True
    optimizer.step()
    np.testing.assert_array_equal(slot, before)
    del optimizer
    gc.collect()
    assert not np.array_equal(slot, before)


def test_parameters_on_the_cpu_step_where_they_are():
    params, twins = make("cpu"), make("cpu")
    for optimizer in (Adam(params, state_device="host"), Adam(twins)):
        optimizer.step()
    np.testing.assert_array_equal(params[1].data, twins[1].data)


def test_a_rule_without_slots_steps_in_one_launch(emulated):
    optimizer = SGD(make("cuda:0"), state_device="host")
    emulated.record = Record()
    optimizer.step()
    assert len(emulated.record.launches) == 1
    assert emulated.record.downloads == []


@pytest.mark.parametrize("place", ["gpu", "cuda:0", True, 0, np.zeros(2)], ids=str)
@pytest.mark.parametrize("rule", rules.optimizers(), ids=lambda rule: rule.__name__)
def test_another_place_is_refused(rule, place):
    with pytest.raises(ValueError, match="state_device must be 'host', or None"):
        rule([Parameter([1.0])], state_device=place)


def test_blocks_of_host_memory_that_happen_to_be_neighbours_are_copied_apart(emulated):
    params = make("cuda:0", (8, 8))
    memory = memoryview(transfer.pinned_block(64))
    optimizer = SGD(params, momentum=0.9, state_device="host")
    for param, block in zip(params, (memory[:32], memory[32:]), strict=True):
        optimizer.state[param]["step"] = 1
        optimizer.state[param]["momentum_buffer"] = np.frombuffer(block, np.float32)
    emulated.record = Record()
    optimizer.step()
    assert emulated.record.downloads == [32, 32]


def test_the_first_copy_comes_after_what_the_memory_may_have_been_used_for(emulated):
    optimizer = SGD(make("cuda:0", (50,)), momentum=0.9, state_device="host")
    emulated.lazy = True
    done = []
    stream = emulated.default_stream(0)
    stream.submit(lambda: done.append(True))
    optimizer.step()
    optimizer._prepared.streamed[0]._fused._up.drain()
    assert done
