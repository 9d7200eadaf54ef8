import errno
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.checkpoint import Checkpointer, CheckpointError, background, durable, shards
from tests.checkpoint import trees


@pytest.fixture
def gate(monkeypatch):
    """Hold every write to disk until the gate is opened."""
    gate = threading.Event()
    write_all = durable.write_all

    def gated(descriptor, data):
        assert gate.wait(60)
        write_all(descriptor, data)

    monkeypatch.setattr(durable, "write_all", gated)
    yield gate
    gate.set()


def test_what_is_changed_after_the_call_is_not_in_the_checkpoint(tmp_path, gate):
    layouts = trees.layouts(trees.filled(np.dtype("f4"), (40, 50), seed=0).copy())
    layouts.pop("broadcast")
    before = {name: array.copy() for name, array in layouts.items()}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {"layouts": layouts, "p": Parameter(layouts["C"])}, block=False)
        for array in layouts.values():
            array[...] = 7
        gate.set()
        checkpointer.wait()
        loaded = checkpointer.restore()
    assert trees.same(loaded["layouts"], before)
    assert trees.same(loaded["p"].data, before["C"])


def test_the_call_returns_before_anything_is_written(tmp_path, gate):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, np.ones(3), block=False)
        assert checkpointer.steps() == []
        gate.set()
        checkpointer.wait()
        assert checkpointer.steps() == [1]


def test_every_dtype_and_shape_is_copied_to_the_bit(tmp_path, quick_sync):
    tree = [trees.filled(dtype, shape, 0) for dtype in trees.DTYPES for shape in [(), (0,), (3, 2)]]
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, tree, block=False)
        assert trees.same(checkpointer.restore(), tree)


def test_arrays_of_one_size_have_buffers_of_their_own_in_every_save(tmp_path, quick_sync):
    arrays = [np.full(5, i) for i in range(4)]
    with Checkpointer(tmp_path) as checkpointer:
        for step in range(1, 4):
            for array in arrays:
                array[...] += 10
            checkpointer.save(step, arrays, block=False)
            assert [one[0] for one in checkpointer.restore(step)] == [
                10 * step + i for i in range(4)
            ]


def test_the_next_save_waits_for_the_one_in_flight(tmp_path, gate):
    w = np.zeros(1000)
    with Checkpointer(tmp_path, keep=5) as checkpointer:
        checkpointer.save(1, w, block=False)
        opener = threading.Timer(0.05, gate.set)
        opener.start()
        w += 1
        checkpointer.save(2, w, block=False)
        opener.join()
        w += 1
        checkpointer.save(3, w, block=False)
        assert [checkpointer.restore(step)[0] for step in (3,)] == [2]
        assert [checkpointer.restore(step)[0] for step in (1, 2, 3)] == [0, 1, 2]


def test_buffers_are_reused_from_one_save_to_the_next(tmp_path, quick_sync):
    w = np.zeros(1000)
    with Checkpointer(tmp_path) as checkpointer:
        addresses = []
        for step in (1, 2):
            checkpointer.save(step, w, block=False)
            checkpointer.wait()
            (buffer,) = checkpointer._staging._buffers.values()
            addresses.append(buffer.ctypes.data)
        assert addresses[0] == addresses[1]


def test_a_tree_that_changes_its_shapes_is_saved_right(tmp_path, quick_sync):
    with Checkpointer(tmp_path) as checkpointer:
        for step, size in enumerate((3, 5, 2)):
            checkpointer.save(step, [np.full(size, step), np.full(2, step)], block=False)
            assert trees.same(checkpointer.restore(), [np.full(size, step), np.full(2, step)])


def test_what_cannot_be_saved_is_refused_at_the_call(tmp_path):
    with Checkpointer(tmp_path) as checkpointer, pytest.raises(TypeError, match="tree is a"):
        checkpointer.save(1, object(), block=False)


def failing_fsync(descriptor):
    raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def failed(tmp_path, monkeypatch):
    """A checkpointer whose background save has failed, on a disk that works again."""
    checkpointer = Checkpointer(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing_fsync)
        checkpointer.save(1, np.ones(3), block=False)
        checkpointer._writer.join()
    yield checkpointer
    checkpointer.close()


@pytest.mark.parametrize("asking", ["wait", "close", "blocking save", "background save"])
def test_an_error_surfaces_at_the_next_call(failed, asking):
    calls = {
        "wait": failed.wait,
        "close": failed.close,
        "blocking save": lambda: failed.save(2, {}),
        "background save": lambda: failed.save(2, {}, block=False),
    }
    with pytest.raises(CheckpointError, match=r"000001 was not saved.*Input"):
        calls[asking]()
    assert failed.steps() == []


def test_after_an_error_was_raised_saving_works_again(failed):
    with pytest.raises(CheckpointError):
        failed.wait()
    failed.save(1, 5, block=False)
    assert failed.restore() == 5


def test_close_releases_the_directory_even_after_an_error(failed, tmp_path):
    with pytest.raises(CheckpointError):
        failed.close()
    Checkpointer(tmp_path).close()


PROGRAM = """
import os, sys
import numpy as np
from lucid_gpu.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
if sys.argv[2] == "fail":
    def failing(descriptor):
        raise OSError(5, "Input/output error")
    os.fsync = failing
checkpointer.save(1, np.ones(10), block=False)
"""


def run_and_forget(directory, mode):
    command = [sys.executable, "-c", PROGRAM, str(directory), mode]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_program_that_ends_without_close_finishes_its_save(tmp_path):
    assert run_and_forget(tmp_path, "work").stderr == ""
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.restore().tolist() == [1.0] * 10


def test_an_error_that_nobody_asked_for_is_printed_at_the_end(tmp_path):
    assert "was not saved: Input/output error" in run_and_forget(tmp_path, "fail").stderr


def test_a_background_save_rests_after_every_piece_and_a_blocking_one_never(tmp_path, monkeypatch):
    rests = []
    monkeypatch.setattr(shards, "PIECE_BYTES", 1000)
    monkeypatch.setattr(background.BackgroundWriter, "_rest", lambda _, took: rests.append(took))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, np.ones(600), block=False)
        checkpointer.wait()
        assert len(rests) == 5
        checkpointer.save(2, np.ones(600))
        assert len(rests) == 5


@pytest.mark.parametrize("wait", ["wait", "close", "restore"])
def test_a_save_that_is_waited_for_rests_no_more(tmp_path, monkeypatch, wait):
    monkeypatch.setattr(background, "REST", 1e9)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, np.ones(600), block=False)
    getattr(checkpointer, wait)()
    assert checkpointer.steps() == [1]
    checkpointer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, threads have no priorities")
@pytest.mark.parametrize(("own", "expected"), [(0, [10]), (9, [10]), (10, []), (15, [])])
def test_a_save_has_a_low_priority_and_never_a_higher_one(
    tmp_path, quick_sync, monkeypatch, own, expected
):
    given = []
    monkeypatch.setattr(os, "getpriority", lambda *_: own)
    monkeypatch.setattr(os, "setpriority", lambda _, thread, nice: given.append((thread, nice)))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, {}, block=False)
        checkpointer.wait()
    assert [nice for _, nice in given] == expected
    assert threading.get_native_id() not in [thread for thread, _ in given]
