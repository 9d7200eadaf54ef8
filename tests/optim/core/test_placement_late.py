"""offload and reload on a device that lags behind: who waits for whom, and what lives how long."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu.device.overlap import Copies
from lucid_gpu.execution import streamed
from lucid_gpu.optim import Adam
from tests.emulation.machine import Record
from tests.execution.test_cuda import make, set_gradients
from tests.optim.core.placing import arrays, assert_same, trained


def test_offload_frees_device_memory_when_the_copies_are_done_and_not_before(emulated, released):
    optimizer = trained("cuda:0")
    slots = [weakref.ref(array) for array in arrays(optimizer)]
    emulated.lazy = True
    optimizer.offload()
    gc.collect()
    assert all(slot() is not None for slot in slots)
    for stream in emulated.streams:
        stream.drain()
    released()
    assert all(slot() is None for slot in slots)


def test_a_blocking_offload_has_freed_device_memory(emulated):
    optimizer = trained("cuda:0")
    slots = [weakref.ref(array) for array in arrays(optimizer)]
    emulated.lazy = True
    optimizer.offload(block=True)
    gc.collect()
    assert all(slot() is None for slot in slots)


@pytest.mark.parametrize("move", ["offload", "reload"])
def test_arrays_under_way_outlive_their_optimizer(emulated, released, move):
    optimizer = trained("cuda:0", (50,))
    if move == "reload":
        optimizer.offload(block=True)
    emulated.lazy = True
    getattr(optimizer, move)()
    (entry, *_) = optimizer.state._entries.values()
    array = weakref.ref(entry[1]._values["exp_avg"])
    del optimizer, entry
    gc.collect()
    assert array() is not None
    for stream in emulated.streams:
        stream.drain()
    released()
    assert array() is None


def test_the_copies_come_after_what_is_on_the_current_stream_and_hold_up_nothing(emulated):
    optimizer = trained("cuda:0", (50,))
    (slot, _) = arrays(optimizer)
    stream = emulated.default_stream(0)
    emulated.lazy = True
    emulated.record = Record()
    stream.submit(lambda: slot.view(np.ndarray).fill(7))
    optimizer.offload()
    done = []
    stream.submit(lambda: done.append(True))
    downloads = [own for own in emulated.streams if own._queue and own is not stream]
    stream.drain()
    assert done
    assert any(not own.done for own in downloads)
    assert emulated.record.synchronizations == 0
    assert set(arrays(optimizer)[0].tolist()) == {7}


def test_a_step_after_reload_waits_for_the_copies_without_holding_the_host(emulated):
    optimizer, twin = trained("cuda:0"), trained("cpu")
    optimizer.offload(block=True)
    emulated.lazy = True
    emulated.record = Record()
    optimizer.reload()
    optimizer.step()
    assert emulated.record.synchronizations == 0
    twin.step()
    assert_same(optimizer, twin)


def test_every_stream_that_reads_after_reload_waits_for_the_copies(emulated):
    import cupy

    optimizer = trained("cuda:0", (50,))
    optimizer.offload(block=True)
    values = arrays(optimizer)[0].copy()
    emulated.lazy = True
    optimizer.reload()
    streams, given = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)], []
    for stream in streams:
        with stream:
            (slot, _) = arrays(optimizer)
            seen = []
            stream.submit(lambda slot=slot, seen=seen: seen.append(slot.view(np.ndarray).copy()))
            given.append(seen)
    for stream, seen in reversed(list(zip(streams, given, strict=True))):
        assert len(stream._queue) > 1
        stream.drain()
        np.testing.assert_array_equal(seen[0], values)


@pytest.mark.parametrize("steps_where_it_was_read", [False, True])
def test_a_step_after_reload_waits_although_a_slot_was_read_before(
    emulated, steps_where_it_was_read
):
    import cupy

    optimizer, twin = trained("cuda:0"), trained("cpu")
    optimizer.offload(block=True)
    emulated.lazy = True
    optimizer.reload()
    reading = cupy.cuda.Stream(non_blocking=True)
    stepping = reading if steps_where_it_was_read else cupy.cuda.Stream(non_blocking=True)
    with reading:
        arrays(optimizer)
    with stepping:
        optimizer.step()
    stepping.drain()
    twin.step()
    emulated.lazy = False
    assert_same(optimizer, twin)


def test_the_first_step_after_reload_waits_once_for_all_slots(emulated, monkeypatch):
    optimizer = trained("cuda:0", (3,) * 50)
    optimizer.offload(block=True)
    emulated.lazy = True
    optimizer.reload()
    waits = []
    hold_back = Copies.hold_back
    monkeypatch.setattr(Copies, "hold_back", lambda own: waits.append(own) or hold_back(own))
    optimizer.step()
    assert len(waits) < 5


def step_some(optimizer):
    """Step with another gradient for each parameter, and none for one of them."""
    params = optimizer._params()
    number = sum(optimizer.state[param].get("step", 0) for param in params)
    set_gradients(params, number)
    params[number % len(params)].grad = None
    optimizer.step()


MOVES = {
    "step": step_some,
    "offload": lambda optimizer: optimizer.offload(),
    "offload and wait": lambda optimizer: optimizer.offload(block=True),
    "reload": lambda optimizer: optimizer.reload(),
    "reload and wait": lambda optimizer: optimizer.reload(block=True),
    "load": lambda optimizer: optimizer.load_state_dict(optimizer.state_dict()),
    "to the CPU": lambda optimizer: optimizer.to("cpu"),
    "to a GPU": lambda optimizer: optimizer.to("cuda:0"),
    "to the other GPU": lambda optimizer: optimizer.to("cuda:1"),
}


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(moves=st.lists(st.sampled_from(["step", *MOVES]), min_size=3, max_size=12))
def test_any_sequence_of_moves_and_steps_on_a_late_device(emulated, monkeypatch, moves):
    monkeypatch.setattr(streamed, "WINDOW_BYTES", 2 * 4 * 4096)
    emulated.lazy = True
    sizes = (5, 9000, 20_000)
    optimizer, twin = Adam(make("cuda:0", sizes)), Adam(make("cpu", sizes))
    for move in moves:
        MOVES[move](optimizer)
        if move == "step":
            step_some(twin)
    assert_same(optimizer, twin)
