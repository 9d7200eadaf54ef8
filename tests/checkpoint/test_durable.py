import ctypes
import os
import shutil

import numpy as np
import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, durable, load, save, shards


@pytest.fixture(autouse=True)
def _quick(quick_sync):
    pass


@pytest.fixture
def limited_write(monkeypatch):
    """The system takes no more than seven bytes at a time."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:7]))


def test_short_writes_are_continued(tmp_path, limited_write):
    save(tmp_path / "c", {"w": np.arange(100.0)})
    assert load(tmp_path / "c")["w"].tolist() == list(range(100))


def test_a_system_that_cannot_be_told_to_begin_saves_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(durable, "AHEAD_BYTES", 1)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    save(tmp_path / "c", np.arange(100.0))
    assert load(tmp_path / "c").tolist() == list(range(100))


def test_the_disk_begins_while_more_is_written_and_is_synced_at_the_end(tmp_path, monkeypatch):
    calls = []
    sync = os.fsync
    monkeypatch.setattr(durable, "AHEAD_BYTES", 100)
    monkeypatch.setattr(shards, "PIECE_BYTES", 64)
    monkeypatch.setattr(durable, "_begin", lambda _, *part: calls.append(part))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("sync"), sync(descriptor)))
    save(tmp_path / "c", np.arange(100.0))
    size = (tmp_path / "c" / "data-00000.safetensors").stat().st_size
    begun = calls[next(i for i, call in enumerate(calls) if call != "sync") :]
    parts = begun[: begun.index("sync")]
    starts = [start for start, _ in parts]
    ends = [start + count for start, count in parts]
    assert starts == [0, *ends[:-1]]
    assert size - 100 < ends[-1] <= size
    assert load(tmp_path / "c").tolist() == list(range(100))


@pytest.mark.parametrize("length", [241, 242, 248, 255])
def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path, length):
    path = tmp_path / ("n" * length)
    save(path, 5)
    assert load(path) == 5


@pytest.mark.parametrize("name", ["best", "n" * 255, "\u00e9" * 127])
def test_a_save_removes_what_a_dead_one_of_its_target_left(tmp_path, monkeypatch, name):
    leave(tmp_path / name, monkeypatch)
    leave(tmp_path / "other", monkeypatch)
    assert len(list(tmp_path.glob(".tmp-*"))) == 2
    save(tmp_path / name, 1)
    assert [path.name[:10] for path in tmp_path.glob(".tmp-*")] == [".tmp-other"]


def leave(path, monkeypatch):
    """Save, and be killed before anything is cleaned up."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *_, **__: 1 / 0)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(ZeroDivisionError):
            save(path, 1)


def sweeping_after(call, monkeypatch, times):
    """Have another process clean up right after the first calls that make or open a directory."""
    real = getattr(os, call)
    left = [times]

    def swept(path, *arguments, **options):
        result = real(path, *arguments, **options)
        if str(path).startswith(".tmp-") and left[0]:
            left[0] -= 1
            if call == "open":
                shutil.rmtree(path, dir_fd=options["dir_fd"])
            else:
                durable.sweep(options["dir_fd"])
        return result

    monkeypatch.setattr(os, call, swept)


@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_fresh_directory_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path, monkeypatch, call
):
    sweeping_after(call, monkeypatch, times=3)
    save(tmp_path / "c", {"w": np.arange(3)})
    assert load(tmp_path / "c")["w"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_a_directory_that_is_swept_for_ever_is_an_error(tmp_path, monkeypatch):
    sweeping_after("mkdir", monkeypatch, times=10**9)
    with pytest.raises(CheckpointError, match="keep cleaning up"):
        save(tmp_path / "c", 1)


def test_a_directory_that_another_process_is_sweeping_is_made_again(tmp_path, monkeypatch):
    mkdir, held = os.mkdir, []

    def taken(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        if str(path).startswith(".tmp-") and not held:
            held.append(durable.hold(path, options["dir_fd"]))

    monkeypatch.setattr(os, "mkdir", taken)
    save(tmp_path / "c", 1)
    durable.release(held[0])
    assert load(tmp_path / "c") == 1


def test_a_living_writer_is_not_swept(tmp_path, monkeypatch):
    write_all = durable.write_all

    def interfering(descriptor, data):
        write_all(descriptor, data)
        with durable.open_directory(tmp_path) as parent:
            durable.sweep(parent)

    monkeypatch.setattr(durable, "write_all", interfering)
    save(tmp_path / "c", {"w": np.arange(3)})
    assert load(tmp_path / "c")["w"].tolist() == [0, 1, 2]


def test_what_a_living_writer_leaves_aside_is_not_swept_by_another_process(tmp_path):
    (tmp_path / ".tmp-c-01234567").mkdir()
    lock = durable.hold(tmp_path / ".tmp-c-01234567")
    Checkpointer(tmp_path).close()
    assert (tmp_path / ".tmp-c-01234567").exists()
    durable.release(lock)
    Checkpointer(tmp_path).close()
    assert not (tmp_path / ".tmp-c-01234567").exists()


def test_two_processes_may_make_one_directory(tmp_path, monkeypatch):
    mkdir = os.mkdir

    def late(path, *arguments, **options):
        mkdir(path, *arguments, **options)
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(os, "mkdir", late)
    durable.make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_directory_above_that_may_not_be_listed_is_no_obstacle(tmp_path, monkeypatch):
    real = os.open

    def forbid(path, *arguments, **options):
        if path == tmp_path.parent:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", forbid)
    durable.make_directories(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_both_the_link_and_what_it_leads_to_are_made_durable(tmp_path, monkeypatch):
    (tmp_path / "real" / "run").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "run").symlink_to(tmp_path / "real" / "run")
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(os.fstat(descriptor).st_ino))
    durable.make_directories(tmp_path / "links" / "run")
    assert {(tmp_path / name).stat().st_ino for name in ("links", "real", ".")} <= synced
