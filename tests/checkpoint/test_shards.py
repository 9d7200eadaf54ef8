import os

import numpy as np
import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, durable, load, reader, save, shards
from lucid_gpu.checkpoint.reader import Reader
from tests.checkpoint import trees

SIZES = [4096 + 1, (1 << 20) + 1, (4 << 20) + 1, (8 << 20) + 1]


@pytest.fixture
def path(tmp_path, quick_sync):
    return tmp_path / "checkpoint"


@pytest.fixture
def lowered(monkeypatch):
    """Many shards, batches and pieces for little data, and threads on any machine."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    monkeypatch.setattr(shards, "PIECE_BYTES", 160)
    monkeypatch.setattr(reader, "_SCRATCH_BYTES", 128)
    monkeypatch.setattr(reader, "_BATCH_BYTES", 1000)
    monkeypatch.setattr(reader, "_PART_BYTES", 1500)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def many():
    return [trees.filled(np.dtype("u1"), (size,), size) for size in range(400, 1600, 100)]


@pytest.mark.parametrize("size", SIZES)
def test_large_tensors_come_back_in_every_way(path, size):
    array = trees.filled(np.dtype("u1"), (size,), size)
    save(path, array)
    assert load(path).tobytes() == array.tobytes()
    target, strided = np.zeros(size, np.uint8), np.zeros(2 * size, np.uint8)[::2]
    for into in (target, strided):
        load(path, into=into)
        assert into.tobytes() == array.tobytes()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_damage_anywhere_in_a_large_tensor_is_noticed(path, size, place):
    save(path, trees.filled(np.dtype("u1"), (size,), size))
    flip(path / "data-00000.safetensors", size, place)
    with Reader(path) as opened, pytest.raises(CheckpointError, match="do not match"):
        opened.verify(["array"])
    with pytest.raises(CheckpointError, match="do not match"):
        load(path)


def flip(file, size, place):
    with file.open("r+b") as opened:
        at = file.stat().st_size - size + int(place * (size - 1))
        opened.seek(at)
        (byte,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([byte ^ 1]))


def test_many_shards_batches_and_pieces_come_back_in_every_way(path, lowered):
    arrays = many()
    save(path, arrays)
    assert len(list(path.glob("data-*"))) > 2
    assert trees.same(load(path), arrays)
    for targets in (
        [np.zeros_like(array) for array in arrays],
        [np.zeros(2 * array.size, np.uint8)[::2] for array in arrays],
    ):
        load(path, into=targets)
        assert [target.tobytes() for target in targets] == [array.tobytes() for array in arrays]


def test_damage_in_any_batch_of_any_shard_is_noticed(path, lowered):
    arrays = many()
    save(path, arrays)
    targets = [np.zeros_like(array) for array in arrays]
    for file in sorted(path.glob("data-*")):
        raw = file.read_bytes()
        for at in range(len(raw) - 1, 1000, -350):
            file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(CheckpointError, match=file.name):
                load(path)
            with pytest.raises(CheckpointError, match=file.name):
                load(path, into=targets)
            with Reader(path) as opened, pytest.raises(CheckpointError, match=file.name):
                opened.verify(opened.manifest.tensors)
        file.write_bytes(raw)
    assert not any(target.any() for target in targets)


def test_short_reads_are_continued(path, monkeypatch):
    array = trees.filled(np.dtype("f8"), (1000,), 0)
    save(path, [array, {"name": "x" * 100}])
    preadv = os.preadv

    def short(descriptor, buffers, offset):
        return preadv(descriptor, [buffers[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", short)
    assert trees.same(load(path), [array, {"name": "x" * 100}])
    target = np.zeros(1000)
    load(path, into=[target, None])
    assert target.tobytes() == array.tobytes()


@pytest.mark.parametrize("layout", ["C", "Fortran", "reversed", "strided", "broadcast"])
@pytest.mark.parametrize("size", [10, 50_000])
def test_an_array_that_changes_while_it_is_saved_can_be_loaded(path, monkeypatch, layout, size):
    array = trees.layouts(np.zeros((2, size)))[layout]
    base = array if array.base is None else array.base
    monkeypatch.setattr(shards, "PIECE_BYTES", 40_000)
    write_all = durable.write_all

    def changing(descriptor, data):
        base.flags.writeable = True
        base[...] += 1
        write_all(descriptor, data)

    monkeypatch.setattr(durable, "write_all", changing)
    save(path, array)
    values = np.unique(load(path))
    assert values[0] >= 0
    # One piece is of one moment; what is small is one piece.
    assert len(values) == 1 or size > 10


def test_a_strided_array_is_saved_without_a_copy_of_the_whole(path, monkeypatch):
    monkeypatch.setattr(shards, "PIECE_BYTES", 1 << 16)
    array = np.arange(2 << 20, dtype=np.float64)[::2]
    assert traced_peak(lambda: save(path, array)) < 1 << 20
    assert load(path).tobytes() == array.tobytes()


def traced_peak(action):
    import tracemalloc

    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("steps", [2, 5])
def test_two_arrays_of_one_shape_are_staged_apart(path, steps):
    arrays = [np.zeros(1000), np.zeros(1000), np.zeros(1000)]
    with Checkpointer(path, keep=10) as checkpointer:
        for step in range(steps):
            for number, array in enumerate(arrays):
                array[...] = 10 * step + number
            checkpointer.save(step, arrays, block=False)
        for step in range(steps):
            found = [np.unique(array).tolist() for array in checkpointer.restore(step)]
            assert found == [[10 * step], [10 * step + 1], [10 * step + 2]]
