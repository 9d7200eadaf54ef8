"""Copies beside the current stream."""

from __future__ import annotations

import types

import numpy as np
import pytest

from lucid_gpu.device import overlap, transfer
from lucid_gpu.device.arrays import device_of
from lucid_gpu.device.overlap import Copies


def pairs(*devices):
    result = []
    for device in devices:
        host = transfer.pinned_block(64)
        host[:] = 7
        result.append((host, transfer.copy(np.zeros(64, np.uint8), device)))
    return result


def test_copies_to_several_devices_arrive(emulated):
    emulated.lazy = True
    given = pairs("cuda:0", "cuda:1")
    copies = Copies(given)
    assert not copies.are_done
    assert copies.wait()
    assert copies.are_done
    for _, target in given:
        assert set(transfer.to(target, "cpu").tolist()) == {7}


def test_a_fault_leaves_no_copy_under_way(emulated, monkeypatch):
    given = pairs("cuda:0", "cuda:1")
    Copies(given).wait()
    emulated.lazy = True

    def fail(*args, **options):
        raise RuntimeError("no more")

    copy = overlap._copy
    monkeypatch.setattr(
        overlap,
        "_copy",
        lambda source, target, stream: (
            copy(source, target, stream) if device_of(target) != "cuda:1" else fail()
        ),
    )
    with pytest.raises(RuntimeError, match="no more"):
        Copies(given)
    assert all(stream.done for stream in emulated.streams if not stream.is_default)


def test_copies_can_be_waited_for_when_they_are_let_go(emulated):
    given = pairs("cuda:0")
    emulated.lazy = True
    copies = Copies(given, wait_when_gone=True)
    assert not all(stream.done for stream in emulated.streams)
    del copies
    assert all(stream.done for stream in emulated.streams if not stream.is_default)


def test_no_copies_are_done_at_once(emulated):
    copies = Copies([])
    assert copies.are_done
    copies.hold_back()


def test_a_lack_of_pinned_memory_says_what_lacks_and_what_to_do(emulated, monkeypatch):
    import cupy

    freed = []

    def fail(nbytes, flags):
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")

    monkeypatch.setattr(cupy.cuda, "PinnedMemory", fail)
    pool = types.SimpleNamespace(free_all_blocks=lambda: freed.append(True))
    cupy.get_default_pinned_memory_pool = lambda: pool
    with pytest.raises(MemoryError, match=r"2\.0 GiB of page-locked host memory .* free host"):
        transfer.pinned_block(2 << 30)
    assert freed
