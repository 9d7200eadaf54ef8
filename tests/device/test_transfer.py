"""Copies between host and device, in pinned pieces, and between devices."""

from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import address, device_of
from tests.emulation.machine import Record

LENIENT = settings(
    deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (0,), (1, 0, 2), (1,), (7,), (3, 5), (2, 3, 4)])
def test_a_copy_to_the_device_and_back_keeps_bits_and_layout(
    accelerator, shape, dtype, order, monkeypatch, rng
):
    monkeypatch.setattr(transfer, "STAGING_BYTES", 24)
    array = np.asarray(np.array(rng.normal(size=shape) * 9).astype(dtype), order=order)
    there = transfer.copy(array, accelerator)
    back = transfer.copy(there, "cpu")
    assert device_of(there) == accelerator
    assert (back.shape, back.dtype) == (array.shape, array.dtype)
    assert transfer.layout(there) == transfer.layout(back) == transfer.layout(array)
    np.testing.assert_array_equal(back, array)
    assert not np.shares_memory(back, array)


@LENIENT
@given(
    elements=st.integers(0, 40), staging=st.integers(1, 100), cut=st.sampled_from([1, 2, 3, -1, -2])
)
def test_pieces_of_any_size_make_a_whole(accelerator, monkeypatch, elements, staging, cut):
    monkeypatch.setattr(transfer, "STAGING_BYTES", staging)
    array = np.arange(elements, dtype=np.int16)[::cut]
    there = transfer.copy(array, accelerator)
    np.testing.assert_array_equal(transfer.copy(there, "cpu"), array)
    np.testing.assert_array_equal(transfer.copy(there[::-1], "cpu"), array[::-1])


def test_staging_takes_two_buffers_however_large_the_array(emulated, monkeypatch):
    monkeypatch.setattr(transfer, "STAGING_BYTES", 64)
    array = np.arange(1000, dtype=np.float64)
    emulated.record = Record()
    there = transfer.copy(array, "cuda:0")
    assert emulated.record.allocations == 3
    assert emulated.record.uploads == [64] * 125
    emulated.record = Record()
    transfer.copy(there, "cpu")
    assert emulated.record.allocations == 2
    assert emulated.record.downloads == [64] * 125


@pytest.mark.parametrize("view", [np.s_[::2], np.s_[::-1], np.s_[:, 1], np.s_[1:, ::3]])
def test_a_view_is_copied_as_it_is_seen(accelerator, view):
    array = np.arange(24.0).reshape(4, 6)
    there = transfer.copy(array, accelerator)
    np.testing.assert_array_equal(transfer.copy(there[view], "cpu"), array[view])
    np.testing.assert_array_equal(
        transfer.copy(transfer.copy(array[view], accelerator), "cpu"), array[view]
    )


def test_a_late_device_gets_every_piece(emulated, monkeypatch):
    monkeypatch.setattr(transfer, "STAGING_BYTES", 8)
    emulated.lazy = True
    array = np.arange(100, dtype=np.uint8)
    np.testing.assert_array_equal(transfer.copy(transfer.copy(array, "cuda:0"), "cpu"), array)


def test_an_interrupted_copy_waits_before_it_lets_go_of_its_buffers(emulated):
    emulated.lazy = True
    there = transfer.copy(np.arange(8, dtype=np.uint8), "cuda:0")
    kept = []

    def copy_halfway():
        with transfer._staging(8) as (stream, (buffer,), _):
            kept.extend([stream, buffer])
            there.data.copy_to_host_async(buffer.ctypes.data, 8, stream)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_halfway()
    stream, buffer = kept
    assert stream.done
    assert buffer.tolist() == list(range(8))


def test_an_interrupted_download_waits_for_the_device_it_comes_from(emulated, monkeypatch):
    monkeypatch.setattr(transfer, "STAGING_BYTES", 8)
    there = transfer.copy(np.arange(100, dtype=np.uint8), "cuda:1")
    emulated.lazy = True
    chunks = transfer.host_chunks(there)
    next(chunks)
    assert not emulated.default_stream(1).done
    chunks.close()
    assert emulated.default_stream(1).done


def test_a_copy_within_a_device_is_another_array(accelerator):
    there = transfer.copy(np.arange(6.0).reshape(2, 3), accelerator)
    for source in (there, there.T, there[:, ::2]):
        copied = transfer.copy(source, accelerator)
        assert address(copied) != address(source)
        assert transfer.layout(copied) == transfer.layout(source)
        np.testing.assert_array_equal(transfer.to(copied, "cpu"), transfer.to(source, "cpu"))


@pytest.mark.parametrize("view", [np.s_[:], np.s_[:, ::2]])
@pytest.mark.parametrize("first", ["cuda:0", "cuda:1"])
def test_a_copy_between_gpus_waits_for_the_work_of_both(emulated, view, first):
    import cupy

    streams = {}
    for name in ("cuda:0", "cuda:1"):
        with gpu.on(name):
            streams[name] = cupy.cuda.get_current_stream()
    there = transfer.copy(np.zeros((3, 4)), "cuda:0")
    emulated.lazy = True
    with gpu.on("cuda:0"):
        streams["cuda:0"].submit(lambda: there.view(np.ndarray).fill(7))
    copied = transfer.copy(there[view], "cuda:1")
    with gpu.on("cuda:0"):
        streams["cuda:0"].submit(lambda: there.view(np.ndarray).fill(9))
    for name in sorted(streams, key=lambda name: name != first):
        streams[name].drain()
    assert (copied.view(np.ndarray) == 7).all()


def test_to_returns_an_array_that_is_there_already(device):
    array = transfer.copy(np.ones(3), device)
    assert transfer.to(array, device) is array


@pytest.mark.parametrize("times", [1, 2])
def test_pinned_memory_that_cannot_be_had_says_what_to_do(emulated, monkeypatch, times):
    import cupy
    import cupyx

    left, freed = [None] * times, []
    empty_pinned = cupyx.empty_pinned

    def fail(*arguments):
        if left:
            left.pop()
            raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
        return empty_pinned(*arguments)

    monkeypatch.setattr(cupyx, "empty_pinned", fail)
    pool = types.SimpleNamespace(free_all_blocks=lambda: freed.append(True))
    cupy.get_default_pinned_memory_pool = lambda: pool
    if times == 1:
        assert transfer.pinned((3, 4), np.float32).shape == (3, 4)
    else:
        with pytest.raises(MemoryError, match=r"^48 bytes of page-locked .*: free host memory"):
            transfer.pinned((3, 4), np.float32)
    assert freed == [True]
