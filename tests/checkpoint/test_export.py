import os

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from lucid_gpu import Parameter
from lucid_gpu.checkpoint import Checkpointer, CheckpointError, export_safetensors, save
from tests.checkpoint import trees
from tests.checkpoint.stateful import Stateful
from tests.checkpoint.test_shards import flip


@pytest.fixture
def folder(tmp_path, quick_sync):
    tied = Parameter(trees.filled(np.dtype("f2"), (3, 4), 1))
    model = {
        "wte.weight": tied,
        "lm_head.weight": tied,
        "h": {"0": {"bias": np.array(3, np.int64)}, "1": [np.zeros((0, 2))]},
        "scale": np.ones(3, ml_dtypes.bfloat16),
    }
    state = Stateful({"m": np.arange(5, dtype=np.uint8)})
    save(tmp_path / "c", {"model": model, "names": np.array(["a"]), "opt": state})
    return tmp_path


def test_a_part_is_a_safetensors_file_with_the_names_of_the_model(folder):
    export_safetensors(folder / "c", "model", folder / "m.safetensors")
    with safetensors.safe_open(folder / "m.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {
            "wte.weight",
            "lm_head.weight",
            "h.0.bias",
            "h.1.0",
            "scale",
        }
        assert file.get_slice("scale").get_dtype() == "BF16"
        weight = trees.filled(np.dtype("f2"), (3, 4), 1)
        assert file.get_tensor("wte.weight").tobytes() == weight.tobytes()
        assert file.get_tensor("lm_head.weight").tobytes() == weight.tobytes()
        assert file.get_tensor("h.0.bias") == 3
        assert file.get_tensor("h.1.0").shape == (0, 2)


@pytest.mark.parametrize(
    ("part", "names"),
    [("opt", ["m"]), ("model/h/0", ["bias"]), ("model/wte.weight", ["wte.weight"])],
)
def test_any_place_can_be_exported(folder, part, names):
    export_safetensors(folder / "c", part, folder / "m.safetensors", {})
    assert list(safetensors.numpy.load_file(folder / "m.safetensors")) == names


def test_the_newest_step_of_a_run_is_exported(tmp_path, quick_sync):
    with Checkpointer(tmp_path / "run") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"w": np.full(2, step)})
    export_safetensors(tmp_path / "run", "", tmp_path / "new" / "m.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "new" / "m.safetensors")["w"].tolist() == [2, 2]
    flip(tmp_path / "run" / "step-000000000002" / "data-00000.safetensors", 1, 0)
    with pytest.warns(UserWarning, match="fell back to step 1"):
        export_safetensors(tmp_path / "run", "", tmp_path / "m.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "m.safetensors")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("modell", "there is no array below 'modell'; there are .'model/wte.weight'"),
        ("mod", "there is no array below 'mod'"),
        ("", "names is <U1, which safetensors has not"),
    ],
)
def test_what_cannot_be_exported_is_refused(folder, part, why):
    (folder / "m.safetensors").write_bytes(b"before")
    with pytest.raises(CheckpointError, match=why):
        export_safetensors(folder / "c", part, folder / "m.safetensors")
    assert (folder / "m.safetensors").read_bytes() == b"before"


def test_two_arrays_of_one_name_are_refused(tmp_path, quick_sync):
    save(tmp_path / "c", {"a": {"b": np.ones(1)}, "a.b": np.zeros(1)})
    with pytest.raises(CheckpointError, match=r"a/b and a\.b would both be called a\.b"):
        export_safetensors(tmp_path / "c", "", tmp_path / "m.safetensors")


def test_damage_and_full_disks_leave_the_file_as_it_was(folder, monkeypatch):
    (folder / "m.safetensors").write_bytes(b"before")
    with monkeypatch.context() as patch:

        def full(*_):
            raise OSError(28, "No space left on device")

        patch.setattr(os, "write", full)
        with pytest.raises(CheckpointError, match=r"m.safetensors was not written: No space"):
            export_safetensors(folder / "c", "model", folder / "m.safetensors")
    shard = folder / "c" / "data-00000.safetensors"
    head = 8 + int.from_bytes(shard.read_bytes()[:8], "little")
    flip(shard, shard.stat().st_size - head, 0)
    with pytest.raises(CheckpointError, match=r"tree\['model'\]\['h'\].* do not match"):
        export_safetensors(folder / "c", "model", folder / "m.safetensors")
    assert (folder / "m.safetensors").read_bytes() == b"before"
    assert sorted(path.name for path in folder.iterdir()) == ["c", "m.safetensors"]


def test_a_store_is_no_place_for_the_file(folder, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="give a local file"):
        export_safetensors(folder / "c", "model", "memory://bucket/model.safetensors")
    assert not list(tmp_path.glob("memory*"))
