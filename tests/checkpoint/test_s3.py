"""Checkpoints in an object store by its own protocol, which a local server speaks."""

import numpy as np
import pytest

from lucid_gpu import checkpoint
from lucid_gpu.checkpoint import Checkpointer, CheckpointError, latest, load, save, shards

s3fs = pytest.importorskip("s3fs", reason="needs S3: pip install -e '.[integrations]'")
server = pytest.importorskip("moto.server", reason="needs S3: pip install -e '.[integrations]'")


@pytest.fixture(scope="module")
def endpoint():
    running = server.ThreadedMotoServer("127.0.0.1", 0)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def store(endpoint, monkeypatch, quick_sync):
    """The empty bucket ``bucket``."""
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    yield store
    store.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


URL = "s3://bucket/run/best"


def tree():
    return {"w": np.arange(3000.0).reshape(30, 100), "h": np.ones(5, np.float16), "epoch": 7}


def test_a_tree_comes_back_whole_in_part_and_in_place(store):
    save(URL, tree())
    assert load(URL)["w"].tolist() == tree()["w"].tolist()
    assert load(URL, select="h")["h"].tolist() == [1] * 5
    assert checkpoint.open(URL)["w"].tolist() == tree()["w"].tolist()
    target = {"w": np.zeros((30, 100)), "h": None, "epoch": None}
    assert load(URL, into=target)["epoch"] == 7
    assert target["w"].tolist() == tree()["w"].tolist()


def test_several_shards_come_back(store, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    save(URL, [np.full(20, i) for i in range(5)])
    assert len(store.ls("bucket/run/best")) == 6
    assert [array[0] for array in load(URL)] == list(range(5))


def test_what_is_there_is_never_replaced(store):
    save(URL, 1)
    with pytest.raises(CheckpointError, match="exists"):
        save(URL, 2)
    assert load(URL) == 1


def test_a_flipped_bit_is_refused(store):
    save(URL, tree())
    (shard,) = store.glob("bucket/run/best/*.safetensors")
    content = bytearray(store.cat(shard))
    content[-1] ^= 1
    store.pipe(shard, bytes(content))
    with pytest.raises(CheckpointError, match="do not match the digest"):
        load(URL)


def test_a_save_that_died_is_no_checkpoint_and_gives_way(store):
    save(URL, tree())
    store.rm("bucket/run/best/manifest.json")
    with pytest.raises(CheckpointError, match="this is no checkpoint"):
        load(URL)
    save(URL, 5)
    assert load(URL) == 5
    assert store.ls("bucket/run/best") == ["bucket/run/best/manifest.json"]


def test_the_newest_step_of_an_uploaded_run_is_read(store, tmp_path):
    with Checkpointer(tmp_path / "run") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"step": step})
    store.put(str(tmp_path / "run"), "bucket/uploaded", recursive=True)
    assert latest("s3://bucket/uploaded") == "s3://bucket/uploaded/step-000000000002"
    assert load("s3://bucket/uploaded") == {"step": 2}


@pytest.mark.parametrize("action", [lambda url: save(url, 1), load], ids=["save", "load"])
def test_a_bucket_that_is_not_there_is_told(store, action):
    with pytest.raises(CheckpointError, match="bucket does not exist"):
        action("s3://nowhere/best")
