import json
import math
import os
import stat

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings

import lucid_gpu
from lucid_gpu import Parameter
from lucid_gpu.checkpoint import CheckpointError, load, save, shards
from lucid_gpu.checkpoint.tree import Encoder
from tests.checkpoint import trees
from tests.checkpoint.stateful import Generous, Stateful

ANY_FIXTURE = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def path(tmp_path, quick_sync):
    return tmp_path / "checkpoint"


@ANY_FIXTURE
@given(tree=trees.trees())
def test_any_tree_comes_back_to_the_bit(tmp_path_factory, quick_sync, tree):
    path = tmp_path_factory.mktemp("trip") / "checkpoint"
    save(path, tree)
    assert trees.same(load(path), tree)


@pytest.mark.parametrize("dtype", trees.DTYPES, ids=str)
def test_every_dtype_comes_back_in_every_layout(path, dtype):
    layouts = {
        f"{shape} {name}": array
        for shape in [(), (0,), (1,), (5,), (3, 4), (1, 0, 2), (2, 3, 2)]
        for name, array in trees.layouts(trees.filled(dtype, shape, seed=1)).items()
    }
    save(path, layouts)
    assert trees.same(load(path), layouts)


def test_the_safetensors_library_reads_every_shard(path):
    dtypes = ["?", "i1", "u8", "f2", "f4", "f8", "c8", "U3", "c16"]
    tree = {code: trees.filled(np.dtype(code), (3, 5), seed=2).T for code in dtypes}
    save(path, tree)
    with safetensors.safe_open(path / "data-00000.safetensors", "np") as file:
        stored = file.get_tensors()
    assert sorted(stored) == sorted(dtypes)
    for name, array in tree.items():
        found = stored[name]
        assert found.tobytes() == array.tobytes()
        assert found.dtype in (array.dtype, np.uint8)


def test_bfloat16_and_float8_are_typed_for_other_readers_of_the_file(path):
    names = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]
    save(path, [np.zeros(2, getattr(ml_dtypes, name)) for name in names])
    with safetensors.safe_open(path / "data-00000.safetensors", "np") as file:
        assert {file.get_slice(f"{i}").get_dtype() for i in range(3)} == {
            "BF16",
            "F8_E4M3",
            "F8_E5M2",
        }


def test_every_tensor_is_aligned_to_its_dtype(path):
    save(path, [np.zeros(3, np.uint8), np.zeros(3, np.float64), np.zeros(3, np.float16)])
    raw = (path / "data-00000.safetensors").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    offsets = {
        name: start + entry["data_offsets"][0] for name, entry in json.loads(raw[8:start]).items()
    }
    assert offsets["1"] % 8 == offsets["2"] % 2 == 0


def test_bool_int_float_and_numpy_scalar_stay_distinct(path):
    tree = [True, 1, 1.0, np.bool_(True), np.int64(1), np.float64(1), np.array(1), -0.0, 2**70]
    save(path, tree)
    assert trees.same(load(path), tree)


def test_integers_of_any_size_come_back(path):
    tree = [2**53 - 1, 2**53, -(2**53), 10**5000, -(2**64)]
    save(path, tree)
    assert load(path) == tree


def test_nan_payloads_of_floats_and_arrays_come_back(path):
    bits = np.array([0x7FF8000000000001, 0xFFF0000000000123, 0x8000000000000000], np.uint64)
    tree = [bits.view(np.float64), *bits.view(np.float64).tolist(), math.inf, -math.inf]
    save(path, tree)
    assert trees.same(load(path), tree)


@pytest.mark.parametrize(
    "wrap", [lambda t: [t], lambda t: (t,), lambda t: {7: t}, lambda t: {"k": t}]
)
def test_trees_as_deep_as_allowed_come_back_and_deeper_ones_are_refused(path, wrap):
    tree = np.arange(3)
    for _ in range(100):
        tree = wrap(tree)
    save(path, tree)
    assert trees.same(load(path), tree)
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        save(path.parent / "deeper", wrap(tree))


def test_dict_order_comes_back(path):
    save(path, {"b": 1, "a": 2, 10: 3, 9: 4})
    assert list(load(path)) == ["b", "a", 10, 9]


def test_an_array_stored_twice_is_stored_once_and_comes_back_shared(path):
    w = np.arange(1000.0)
    save(path, {"a": w, "b": [w, w[:]], "other": w[::2]})
    loaded = load(path)
    assert loaded["a"] is loaded["b"][0] is loaded["b"][1]
    assert loaded["other"] is not loaded["a"]
    assert (path / "data-00000.safetensors").stat().st_size < 2 * w.nbytes


def test_views_that_overlap_come_back_apart(path):
    x = np.arange(4.0)
    save(path, [x, x[:2]])
    whole, part = load(path)
    whole[...] = 9
    assert part.tolist() == [0, 1]


def test_a_parameter_stored_twice_comes_back_as_one(path):
    tied = Parameter(np.ones(3), name="tied")
    save(path, {"in": tied, "out": tied, "other": Parameter(np.ones(3))})
    loaded = load(path)
    assert loaded["in"] is loaded["out"]
    assert loaded["other"] is not loaded["in"]


def test_a_parameter_keeps_name_flag_and_data_but_no_gradient(path):
    parameter = Parameter(np.ones(3, np.float32), name="w")
    parameter.grad = np.ones(3, np.float32)
    save(path, [parameter, Parameter("prompt", requires_grad=False)])
    w, prompt = load(path)
    assert (w.name, w.requires_grad, w.grad) == ("w", True, None)
    assert (prompt.data, prompt.requires_grad) == ("prompt", False)


def test_an_object_comes_back_as_its_state_dict(path):
    save(path, {"scheduler": Stateful({"last_epoch": 3, "lrs": (0.1, 0.2)})})
    assert load(path) == {"scheduler": {"last_epoch": 3, "lrs": (0.1, 0.2)}}


def test_an_object_that_offers_its_own_arrays_is_not_asked_for_copies():
    state = {"exp_avg": np.ones(3)}
    encoder = Encoder()
    encoder.encode(Generous(state))
    assert encoder.arrays["exp_avg"] is state["exp_avg"]


def test_arrays_are_split_into_shards(path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 100)
    tree = [np.full(10, i, np.float32) for i in range(7)]
    save(path, tree)
    assert len(list(path.glob("data-*.safetensors"))) == 3
    assert trees.same(load(path), tree)


def test_memory_maps_come_back_as_arrays(path, tmp_path):
    mapped = np.memmap(tmp_path / "m", np.float32, "w+", shape=(4,))
    mapped[:] = 3
    save(path, mapped)
    assert trees.same(load(path), np.full(4, 3, np.float32))


def test_missing_parents_are_created(tmp_path, quick_sync):
    save(tmp_path / "a" / "b" / "c", 1)
    assert load(tmp_path / "a" / "b" / "c") == 1


def test_file_modes_follow_the_umask(path):
    old = os.umask(0o027)
    try:
        save(path, np.zeros(3))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}


def test_an_existing_path_is_refused_and_kept(path):
    save(path, 1)
    with pytest.raises(CheckpointError, match="exists: remove it"):
        save(path, 2)
    assert load(path) == 1


def test_a_missing_path_is_a_checkpoint_error(path):
    with pytest.raises(CheckpointError, match=str(path)):
        load(path)


def cyclic():
    tree: list = []
    tree.append(tree)
    return tree


@pytest.mark.parametrize(
    ("tree", "place"),
    [
        ({"a": [np.ma.masked_array([1.0, 2.0], [0, 1])]}, r"tree\['a'\]\[0\] is a MaskedArray"),
        ({"a": np.array([{}])}, r"tree\['a'\]: dtype object"),
        ({"a": np.array(["x"], np.dtypes.StringDType())}, r"tree\['a'\]: dtype StringDType"),
        ({"a": (1, {2: range(3)})}, r"tree\['a'\]\[1\]\[2\] is a builtins.range"),
        ({True: 1}, "tree has the key True"),
        ({"a": {np.int64(1): 1}}, r"tree\['a'\] has the key np.int64\(1\)"),
        (np.rec.array([(1,)]), "tree is a recarray"),
        ([cyclic()], "nested more than 100 deep, or holds itself"),
        (lucid_gpu.Parameter, "tree is a builtins.type"),
    ],
    ids=[
        "masked",
        "object",
        "string",
        "range",
        "bool key",
        "NumPy key",
        "subclass",
        "cycle",
        "type",
    ],
)
def test_what_cannot_be_saved_is_refused_with_its_path_before_a_byte_is_written(path, tree, place):
    with pytest.raises((TypeError, ValueError), match=place):
        save(path, tree)
    assert list(path.parent.iterdir()) == []


def test_what_a_data_pipeline_remembers_comes_back(tmp_path):
    (tmp_path / "data").mkdir()
    os.close(os.open(os.fsencode(tmp_path / "data") + b"/caf\xe9.npy", os.O_CREAT))
    transition = [("state", "f4", (4,)), ("action", "i8"), ("reward", "f4"), ("done", "?")]
    replay = np.zeros(6, transition)
    replay["state"] = np.arange(24).reshape(6, 4)
    replay["action"] = range(6)
    seen = {
        "replay": replay,
        "until": np.datetime64("2026-01-05T09:30"),
        "days": np.arange("2026-01-01", "2026-01-06", dtype="M8[D]"),
        "files": [path.name for path in (tmp_path / "data").iterdir()],
        "current": next((tmp_path / "data").iterdir()),
    }
    save(tmp_path / "c", seen)
    loaded = load(tmp_path / "c")
    assert loaded["replay"].dtype == replay.dtype
    assert loaded["replay"].tobytes() == replay.tobytes()
    assert loaded["days"].tolist() == seen["days"].tolist()
    assert [loaded[k] for k in ("until", "files")] == [seen[k] for k in ("until", "files")]
    assert loaded["current"].exists()


def test_one_memory_under_two_dtypes_comes_back_under_both(tmp_path):
    bits = np.array([1.5, -2.0], np.float32)
    save(tmp_path / "c", {"float": bits, "int": bits.view(np.uint32)})
    loaded = load(tmp_path / "c")
    assert trees.same(loaded, {"float": bits, "int": bits.view(np.uint32)})


def test_parameters_that_live_only_in_a_state_dict_are_told_apart(tmp_path):
    class Fresh(Stateful):
        """Its state is made when it is asked for, as often in the same place of memory."""

        def state_dict(self):
            return {"p": Parameter(np.full(2, self.state))}

    save(tmp_path / "c", [Fresh(value) for value in range(20)])
    loaded = load(tmp_path / "c")
    assert [state["p"].data[0] for state in loaded] == list(range(20))
