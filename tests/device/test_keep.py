"""Memory stays until the stream that used it last is done, whoever lets go of it before."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.device import gpu, keep, transfer
from lucid_gpu.device.keep import Kept
from lucid_gpu.optim import SGD, Adam
from tests.execution.test_cuda import make
from tests.optim.core.placing import arrays


def other_stream(**options):
    import cupy

    return cupy.cuda.Stream(**{"non_blocking": True, **options})


def wait_for_the_thread(gone):
    """Wait until a condition holds that another thread sees to."""
    deadline = time.monotonic() + 60
    while not gone() and time.monotonic() < deadline:
        time.sleep(keep.POLL_SECONDS)


def replace_plan(optimizer, params, number):
    optimizer.state[params[0]]["step"] = number
    optimizer.step()


def tables_of(optimizer):
    fused = optimizer._prepared.parts[0].executor._fused
    return [
        weakref.ref(array) for array in (fused._chunks, fused._records.device, fused._table.device)
    ]


@pytest.mark.parametrize("is_captured", [False, True])
def test_tables_stay_while_another_stream_than_their_own_reads_them(emulated, is_captured):
    params = make("cuda:0", (4, 4))
    optimizer = SGD(params, lr=1.0)
    optimizer.step()
    stream = other_stream()
    emulated.lazy = True
    with stream:
        if is_captured:
            stream.begin_capture()
            optimizer.step()
            graph = stream.end_capture()
            optimizer.before_replay()
            graph.launch(stream)
        else:
            optimizer.step()
    memory = tables_of(optimizer)
    optimizer._captured = None
    for number in range(2):
        replace_plan(optimizer, params, number)
        assert all(array() is not None for array in memory)
    stream.synchronize()
    replace_plan(optimizer, params, 2)
    assert all(array() is None for array in memory)


def test_tables_that_only_their_own_stream_reads_go_at_once(emulated):
    params = make("cuda:0", (4, 4))
    optimizer = SGD(params, lr=1.0)
    optimizer.step()
    chunks, *_ = tables_of(optimizer)
    replace_plan(optimizer, params, 0)
    assert chunks() is None


def load(optimizer):
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def clear(optimizer):
    optimizer.state.clear()
    optimizer.step()


def assign(optimizer):
    for param in optimizer._params():
        param.data = transfer.copy(param.data, "cuda:0")
    optimizer.step()


def drop(optimizer):
    optimizer.param_groups.clear()
    optimizer.state.clear()
    optimizer._prepared = None


LET_GO = {
    "load_state_dict": (load, "slots"),
    "state.clear": (clear, "slots"),
    "offload": (lambda optimizer: optimizer.offload(), "slots"),
    "to the host": (lambda optimizer: optimizer.to("cpu"), "slots and data"),
    "to another device": (lambda optimizer: optimizer.to("cuda:1"), "slots and data"),
    "data assigned": (assign, "data"),
    "dropped": (drop, "slots and data"),
}


@pytest.mark.parametrize(("let_go", "what"), LET_GO.values(), ids=LET_GO)
def test_arrays_stay_while_another_stream_than_their_own_uses_them(emulated, let_go, what):
    optimizer = Adam(make("cuda:0", (4, 5000)))
    optimizer.step()
    stream = other_stream()
    emulated.lazy = True
    with stream:
        optimizer.step()
    own = arrays(optimizer) * ("slots" in what)
    own += [param.data for param in optimizer._params()] * ("data" in what)
    memory = [weakref.ref(array) for array in own]
    del own
    let_go(optimizer)
    gc.collect()
    for each in emulated.streams:
        if each is not stream:
            each.drain()
    keep.look()
    assert all(array() is not None for array in memory)
    stream.drain()
    keep.look()
    gc.collect()
    assert all(array() is None for array in memory)


def test_tables_stay_that_were_made_on_another_stream_than_all_arrays(emulated):
    stream = other_stream()
    with stream:
        params = make("cuda:0", (4,))
    optimizer = SGD(params)
    optimizer.step()
    emulated.lazy = True
    with stream:
        optimizer.step()
    tables = tables_of(optimizer)
    drop(optimizer)
    assert all(table() is not None for table in tables)
    stream.drain()


def test_slots_stay_that_were_made_on_another_stream_than_all_else(emulated):
    stream = other_stream()
    with stream:
        (param,) = make("cuda:0", (4,))
    optimizer = SGD([param], momentum=0.9)
    optimizer.state[param].update(step=1, momentum_buffer=transfer.copy(param.data, "cuda:0"))
    emulated.lazy = True
    with stream:
        optimizer.step()
    slots = [weakref.ref(array) for array in arrays(optimizer)]
    drop(optimizer)
    assert all(slot() is not None for slot in slots)
    stream.drain()


def test_data_stays_that_was_made_on_another_stream_than_all_else(emulated):
    (param,) = make("cuda:0", (4,))
    optimizer = SGD([param], momentum=0.9)
    stream = other_stream()
    emulated.lazy = True
    with stream:
        optimizer.step()
        data = weakref.ref(param.data)
        param.data = transfer.copy(np.zeros(4, np.float32), "cuda:0")
        optimizer.step()
    assert data() is not None
    stream.drain()
    keep.look()
    assert data() is None


def test_data_stays_that_was_assigned_on_another_stream_than_all_else(emulated):
    stream = other_stream()
    with stream:
        (param,) = make("cuda:0", (4,))
        optimizer = SGD([param], momentum=0.9)
        optimizer.step()
    param.data = transfer.copy(np.zeros(4, np.float32), "cuda:0")
    data = weakref.ref(param.data)
    emulated.lazy = True
    with stream:
        optimizer.step()
        param.data = transfer.copy(np.ones(4, np.float32), "cuda:0")
        optimizer.step()
    assert data() is not None
    stream.drain()


@pytest.mark.parametrize("period", [2, 3, 4, 5])
def test_pinned_copies_stay_until_the_device_has_read_them(emulated, period):
    """Whoever gets their memory next fills it at once, with what another step is to read."""
    params, twins = (make(device, (4,) * period) for device in ("cuda:0", "cpu"))
    emulated.lazy = True
    for own in (params, twins):
        for number in range(3 * period):
            first = number % period
            SGD([*own[first:], *own[:first]], lr=1 / (1 + number)).step()
    for param, twin in zip(params, twins, strict=True):
        np.testing.assert_array_equal(param.numpy(), twin.numpy())


def test_arrays_of_one_stream_go_at_once(emulated):
    stream = other_stream()
    emulated.lazy = True
    with stream:
        params = make("cuda:0", (4, 4))
        optimizer = Adam(params)
        optimizer.step()
        memory = [weakref.ref(array) for array in (*arrays(optimizer), params[0].data)]
        del params
        drop(optimizer)
    gc.collect()
    assert all(array() is None for array in memory)


def test_another_stream_of_another_device_keeps_nothing(emulated):
    with gpu.on("cuda:1"):
        stream = other_stream()
    with gpu.on("cuda:1"), stream:
        params = make("cuda:1", (4,))
    params += make("cuda:0", (4,))
    optimizer = Adam(params)
    emulated.lazy = True
    with gpu.on("cuda:1"), stream:
        optimizer.step()
    slots = [weakref.ref(array) for array in arrays(optimizer)]
    drop(optimizer)
    assert all(slot() is None for slot in slots)


def test_the_memory_is_free_soon_after_the_stream_is_done_without_a_look(emulated):
    optimizer = Adam(make("cuda:0", (4,)))
    optimizer.step()
    stream = other_stream()
    emulated.lazy = True
    with stream:
        optimizer.step()
    slots = [weakref.ref(array) for array in arrays(optimizer)]
    drop(optimizer)
    stream.drain()
    wait_for_the_thread(lambda: all(slot() is None for slot in slots))
    assert all(slot() is None for slot in slots)


def used_on(stream):
    """An optimizer that a stream used last on which its slots were not made."""
    import cupy

    maker = cupy.cuda.get_current_stream() if stream is None else other_stream()
    with other_stream() if stream is None else contextlib.nullcontext():
        optimizer = Adam(make("cuda:0", (4,)))
        optimizer.step()
    with maker if stream is None else stream:
        optimizer.step()
    return optimizer, [weakref.ref(array) for array in arrays(optimizer)]


def test_a_stream_that_records_a_graph_gets_no_part_of_it(emulated):
    stream = other_stream()
    optimizer, slots = used_on(stream)
    stream.begin_capture()
    drop(optimizer)
    keep.look()
    assert stream.graph == []
    assert all(slot() is not None for slot in slots)
    stream.end_capture()
    keep.look()
    assert all(slot() is None for slot in slots)


def test_the_next_step_of_any_optimizer_tries_again(emulated):
    stream = other_stream()
    other = SGD(make("cuda:0", (4,)))
    other.step()
    optimizer, slots = used_on(stream)
    stream.begin_capture()
    drop(optimizer)
    stream.end_capture()
    other.step()
    assert all(slot() is None for slot in slots)


def test_a_blocking_stream_that_records_costs_the_legacy_stream_no_memory_and_is_not_spoilt(
    emulated,
):
    optimizer, slots = used_on(None)
    recording = other_stream(non_blocking=False)
    recording.begin_capture()
    drop(optimizer)
    keep.look()
    assert all(slot() is not None for slot in slots)
    recording.end_capture()
    keep.look()
    assert all(slot() is None for slot in slots)


def test_a_capture_that_somebody_has_spoilt_costs_no_memory_and_raises_nothing(emulated):
    stream = other_stream()
    optimizer, slots = used_on(stream)
    stream.begin_capture()
    stream.is_spoilt = True
    drop(optimizer)
    keep.look()
    assert all(slot() is not None for slot in slots)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        stream.end_capture()
    keep.look()
    assert all(slot() is None for slot in slots)


def test_a_wait_that_fails_keeps_the_memory(emulated):
    class Owner:
        pass

    owner, memory, stream = Owner(), transfer.copy(np.zeros(4), "cuda:0"), other_stream()
    kept = weakref.ref(memory)
    keep.wait_for(owner, "cuda:0", stream, memory)
    del memory
    stream.begin_capture()  # in which nobody can wait
    del owner
    assert kept() is not None
    stream.end_capture()
    keep.look()
    assert kept() is None


def test_memory_is_let_go_once_and_flags_are_used_again(emulated):
    stream = other_stream()
    for _ in range(3 * keep.FLAGS):
        kept = Kept("cuda:0", object())
        kept.until(stream)
        kept.release()
        assert kept.is_done
    assert len(keep._flags) == len({flag.ctypes.data for flag in keep._flags}) == keep.FLAGS


def test_steps_go_on_where_no_thread_can_be_started(emulated, monkeypatch):
    monkeypatch.setattr(keep, "_watcher", None)

    def fail(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(keep.threading.Thread, "start", fail)
    stream = other_stream()
    optimizer, slots = used_on(stream)
    emulated.lazy = True
    with stream:
        optimizer.step()
    drop(optimizer)
    stream.drain()
    keep.look()
    assert all(slot() is None for slot in slots)


def test_a_parameter_knows_on_which_stream_its_data_was_given(emulated):
    stream = other_stream()
    assert Parameter([1.0]).made is None
    param = Parameter([1.0], device="cuda:1")
    assert param.made == (1, 0)
    with stream:
        (param,) = make("cuda:0", (1,))
    assert param.made == (0, stream.ptr)
