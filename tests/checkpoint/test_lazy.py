import shutil
from pathlib import Path

import numpy as np
import pytest

from lucid_gpu import Parameter, checkpoint
from lucid_gpu.checkpoint import CheckpointError, load, save
from lucid_gpu.checkpoint.reader import Reader
from tests.checkpoint import trees
from tests.checkpoint.test_shards import flip, traced_peak

GOLDEN = Path(__file__).parent / "golden" / "step-000000001200"


@pytest.fixture
def path(tmp_path, quick_sync):
    return tmp_path / "checkpoint"


def test_every_array_is_found_under_its_path(path):
    tied = Parameter(np.ones(2), name="tied")
    shared = np.arange(3)
    save(path, {"a": {"b": shared}, "c": [tied, (shared,)], 7: {"x/y": tied}})
    with checkpoint.open(path) as arrays:
        assert list(arrays) == ["a/b", "c/0", "c/1/0", "7/x/y"]
        assert arrays["a/b"] is arrays["c/1/0"]
        assert arrays["7/x/y"].tolist() == [1, 1]
        assert len(arrays) == 4
        assert "c/0" in arrays
        assert "c" not in arrays
        with pytest.raises(KeyError):
            arrays["c"]


@pytest.mark.parametrize("dtype", trees.DTYPES, ids=str)
def test_every_dtype_comes_back_to_the_bit(path, dtype):
    tree = {str(shape): trees.filled(dtype, shape, 3) for shape in [(), (0,), (5,), (3, 4)]}
    save(path, tree)
    with checkpoint.open(path) as arrays:
        assert trees.same(dict(arrays), tree)


def test_arrays_are_read_only_and_outlive_file_and_handle(path):
    save(path, np.arange(5))
    with checkpoint.open(path) as arrays:
        array = arrays["array"]
    shutil.rmtree(path)
    assert array.tolist() == [0, 1, 2, 3, 4]
    assert not array.flags.writeable


def test_an_array_takes_no_memory_of_its_own(path):
    save(path, np.ones(1 << 20))
    with checkpoint.open(path) as arrays:
        assert traced_peak(lambda: arrays["array"]) < 1 << 16


def test_an_array_is_verified_when_it_is_asked_for_first_and_no_more(path, monkeypatch):
    save(path, {"a": np.ones(100), "b": np.ones(100) * 2})
    flip(path / "data-00000.safetensors", 800, 1)
    with checkpoint.open(path) as arrays:
        assert arrays["a"][0] == 1
        with pytest.raises(CheckpointError, match=r"tree\['b'\]\): its bytes do not match"):
            arrays["b"]
        monkeypatch.setattr(Reader, "mapped", None)
        assert arrays["a"][0] == 1


def test_two_paths_that_read_alike_are_both_found(path):
    save(path, {"a/b": np.ones(1), "a": {"b": np.zeros(1)}, 0: np.full(1, 2), "0": np.full(1, 3)})
    with checkpoint.open(path) as arrays:
        assert {name: array[0] for name, array in arrays.items()} == {
            "a/b": 1,
            "a/b~2": 0,
            "0": 2,
            "0~2": 3,
        }


def test_a_checkpoint_of_version_1_0_has_paths_too():
    with checkpoint.open(GOLDEN) as arrays:
        assert "arrays/0" in arrays
        assert arrays["model/w"].tolist() == load(GOLDEN)["model"]["w"].data.tolist()


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.open(tmp_path / "absent")


def test_a_closed_checkpoint_gives_no_array_and_says_so(path):
    save(path, {"w": np.ones(3)})
    arrays = checkpoint.open(path)
    arrays.close()
    with pytest.raises(ValueError, match="is closed: open it again"):
        arrays["w"]
