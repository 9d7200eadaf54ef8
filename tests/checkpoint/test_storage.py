"""Checkpoints in a store that fsspec knows, on its store in memory."""

import json
import os
import subprocess
import sys

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from lucid_gpu import Parameter, checkpoint
from lucid_gpu.checkpoint import (
    Checkpointer,
    CheckpointError,
    export_safetensors,
    latest,
    load,
    report,
    save,
    shards,
)
from lucid_gpu.command import cli
from tests.checkpoint import trees
from tests.checkpoint.stateful import Stateful

SHARD = "data-00000.safetensors"


@pytest.fixture
def store():
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()


@pytest.fixture
def url(store):
    return "memory://bucket/run/best"


def tree():
    return {
        "model": {"w": Parameter(trees.filled(np.dtype("f4"), (30, 40), 1), name="w")},
        "arrays": [trees.filled(dtype, (3, 2), 2) for dtype in trees.DTYPES],
        "empty": np.empty((0, 3)),
        "s": Stateful({"lr": 0.5}),
        "epoch": 7,
    }


def plain():
    return {**tree(), "s": {"lr": 0.5}}


@pytest.mark.parametrize("small", [False, True])
def test_a_tree_comes_back_to_the_bit(url, store, monkeypatch, small):
    if small:
        monkeypatch.setattr(shards, "SHARD_BYTES", 100)
        monkeypatch.setattr(shards, "PIECE_BYTES", 70)
    save(url, tree())
    assert (len(store.ls("/bucket/run/best")) > 3) is small
    assert trees.same(load(url), plain())
    assert trees.same(load(f"{url}/"), plain())


def test_the_bytes_are_those_of_a_local_checkpoint(url, store, tmp_path, quick_sync):
    save(url, tree())
    save(tmp_path / "c", tree())
    for file in (tmp_path / "c").iterdir():
        assert store.cat_file(f"/bucket/run/best/{file.name}") == file.read_bytes()


def test_parts_are_restored_in_place(url, device):
    save(url, tree())
    target = tree()
    target["model"]["w"].data[...] = 0
    load(url, into=target, select=["model/**", "s"])
    assert trees.same(target["model"], tree()["model"])
    assert load(url, device=device)["model"]["w"].device == device


def test_one_array_is_read_lazily(url):
    save(url, tree())
    with checkpoint.open(url) as arrays:
        array = arrays["model/w"]
        assert array.tobytes() == tree()["model"]["w"].data.tobytes()
        assert not array.flags.writeable
        assert arrays["empty"].shape == (0, 3)


def test_the_manifest_is_written_last(url, monkeypatch):
    names = []
    opened = MemoryFileSystem._open

    def noted(store, path, mode="rb", **options):
        if mode == "wb":
            names.append(path.rpartition("/")[2])
        return opened(store, path, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "_open", noted)
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    save(url, tree())
    assert len(names) > 2
    assert names.index("manifest.json") == len(names) - 1


def flipped(store, path, at):
    raw = bytearray(store.cat_file(path))
    raw[at] ^= 1
    store.pipe_file(path, bytes(raw))


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
def test_flips_and_truncations_are_refused(url, store, name):
    save(url, {"w": np.arange(1.0, 4.0), "pair": (1, b"x")})
    path = f"/bucket/run/best/{name}"
    raw = store.cat_file(path)
    for at in range(0, len(raw), 5):
        flipped(store, path, at)
        with pytest.raises(CheckpointError, match=name):
            load(url)
        store.pipe_file(path, raw[:at])
        with pytest.raises(CheckpointError, match=name):
            load(url)
        store.pipe_file(path, raw)
    load(url)


def test_an_error_of_the_store_leaves_nothing_behind(url, store, monkeypatch):
    pipe = MemoryFileSystem._open

    class BrokenError(Exception):
        """What a store's own library raises."""

    def failing(self, path, mode="rb", **options):
        if mode == "wb" and path.endswith("manifest.json"):
            raise BrokenError("no such bucket")
        return pipe(self, path, mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "_open", failing)
        with pytest.raises(CheckpointError, match=r"best was not saved: BrokenError: no such"):
            save(url, tree())
    assert store.find("/bucket") == []
    save(url, tree())
    assert trees.same(load(url), plain())


def test_a_store_that_keeps_less_than_it_was_given_is_noticed(url, store, monkeypatch):
    info = MemoryFileSystem.info
    monkeypatch.setattr(
        MemoryFileSystem,
        "info",
        lambda self, path, **options: {**info(self, path, **options), "size": 5},
    )
    with pytest.raises(CheckpointError, match="has 5 bytes in the store, not"):
        save(url, tree())


def test_what_a_dead_save_left_is_no_checkpoint_and_gives_way(url, store):
    store.pipe_file(f"/bucket/run/best/{SHARD}", b"half")
    store.pipe_file("/bucket/run/best/data-00007.safetensors", b"half")
    with pytest.raises(CheckpointError, match="this is no checkpoint"):
        load(url)
    save(url, tree())
    assert trees.same(load(url), plain())


@pytest.mark.parametrize("name", ["manifest.json", "notes.txt"])
def test_what_is_there_is_never_replaced(url, store, name):
    store.pipe_file(f"/bucket/run/best/{name}", b"mine")
    with pytest.raises(CheckpointError, match=f"exists, with '{name}'"):
        save(url, tree())
    assert store.find("/bucket") == [f"/bucket/run/best/{name}"]


@pytest.fixture
def run(store, tmp_path, quick_sync):
    """A run that was uploaded to the store."""
    with Checkpointer(tmp_path / "run") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"w": np.full(3, step)})
    store.put(str(tmp_path / "run"), "/bucket/", recursive=True)
    return "memory://bucket/run"


def test_the_newest_step_of_an_uploaded_run_is_read(run, store):
    assert latest(run) == "memory://bucket/run/step-000000000002"
    assert load(run)["w"].tolist() == [2, 2, 2]
    flipped(store, f"/bucket/run/step-000000000002/{SHARD}", -1)
    assert latest(run) == "memory://bucket/run/step-000000000001"
    with pytest.warns(UserWarning, match="fell back to step 1"):
        assert load(run)["w"].tolist() == [1, 1, 1]


def test_a_step_that_is_removed_while_it_is_read_gives_way(run, store, monkeypatch):
    cat, turns = MemoryFileSystem.cat_file, []

    def overtaken(self, path, *arguments, **options):
        if not turns:
            turns.append(1)
            store.rm("/bucket/run/step-000000000002", recursive=True)
        return cat(self, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", overtaken)
    assert load(run)["w"].tolist() == [1, 1, 1]


def test_a_step_that_was_not_uploaded_to_its_end_is_passed_over(run, store):
    store.rm_file("/bucket/run/step-000000000002/manifest.json")
    with pytest.warns(UserWarning, match="fell back to step 1"):
        assert load(run)["w"].tolist() == [1, 1, 1]
    assert latest(run) == "memory://bucket/run/step-000000000001"
    assert report.inspect(run).exit_code == 1
    assert report.verify(run).text.startswith("ok: ")
    store.rm_file("/bucket/run/step-000000000001/manifest.json")
    text, exit_code = report.verify(run)
    assert (exit_code, text.count("NOT VERIFIED")) == (1, 2)


def test_errors_of_reading_are_no_damage(run, monkeypatch):
    def failing(*_, **__):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", failing)
    with pytest.raises(CheckpointError, match=r"000002.*reset by peer.*may pass"):
        load(run)


def test_reports_and_exports_take_urls(run, tmp_path, capsys):
    assert cli.main(["inspect", run]) == 0
    assert "memory://bucket/run/step-000000000002: step 2" in capsys.readouterr().out
    assert cli.main(["verify", run]) == 0
    assert cli.main(["diff", f"{run}/step-000000000001", run]) == 1
    assert json.loads(report.inspect(run, as_json=True).text)["step"] == 2
    export_safetensors(run, "", tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").exists()


def test_a_checkpointer_needs_a_local_directory(url):
    with pytest.raises(ValueError, match="is the URL of a store"):
        Checkpointer(url)


@pytest.mark.parametrize("action", [load, lambda url: save(url, 1)])
def test_a_store_that_fsspec_does_not_know_is_told(action):
    with pytest.raises(CheckpointError, match=r"nowhere://x cannot be reached: .*install fsspec"):
        action("nowhere://x")


def test_a_missing_fsspec_is_told(url, monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(CheckpointError, match=r"install fsspec.*\[remote\]"):
        load(url)


def test_fsspec_is_loaded_for_urls_only(tmp_path):
    program = (
        "import sys; from lucid_gpu import checkpoint;"
        "checkpoint.save(sys.argv[1], 1); checkpoint.load(sys.argv[1]);"
        "print('fsspec' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "c")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_url_of_a_local_directory_is_that_directory(tmp_path, quick_sync):
    save(f"file://{tmp_path}/new/best", {"w": np.ones(3)})
    assert load(tmp_path / "new" / "best")["w"].tolist() == [1, 1, 1]
    assert load(f"file://{tmp_path}/new/best")["w"].tolist() == [1, 1, 1]
    with Checkpointer(f"file://{tmp_path}/run") as checkpointer:
        checkpointer.save(1, {})
    assert (tmp_path / "run" / "step-000000000001").is_dir()


def test_a_path_of_bytes_is_refused(tmp_path):
    with pytest.raises(TypeError, match="must be text"):
        save(os.fsencode(tmp_path / "best"), {})
