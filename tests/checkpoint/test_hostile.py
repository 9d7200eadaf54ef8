"""Files that were damaged or made to mislead: always an error, never wrong data."""

import os
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest

from lucid_gpu.checkpoint import (
    Checkpointer,
    CheckpointError,
    load,
    manifest,
    report,
    save,
    shards,
)
from tests.checkpoint import forge, trees
from tests.checkpoint.stateful import Stateful

SHARD = "data-00000.safetensors"


@pytest.fixture
def path(tmp_path, quick_sync):
    """A small checkpoint in which every byte matters."""
    path = tmp_path / "checkpoint"
    save(path, {"w": np.arange(1.0, 4.0), "pair": (1, b"x"), "s": Stateful({"lr": 0.5})})
    return path


def refused(path, match):
    """Load in both ways, and check that both refuse and that nothing was touched."""
    target, scheduler = np.zeros(3), Stateful({})
    with pytest.raises(CheckpointError, match=match):
        load(path, into={"w": target, "pair": None, "s": scheduler})
    assert not target.any()
    assert scheduler.state == {}
    with pytest.raises(CheckpointError, match=match):
        load(path)


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
def test_every_truncation_is_refused(path, name):
    for length in reversed(range((path / name).stat().st_size)):
        os.truncate(path / name, length)
        refused(path, name)


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
def test_every_bit_flip_is_refused(path, name):
    raw = (path / name).read_bytes()
    target, scheduler = np.zeros(3), Stateful({})
    into = {"w": target, "pair": None, "s": scheduler}
    with (path / name).open("r+b", buffering=0) as file:
        for bit in range(len(raw) * 8):
            byte = raw[bit // 8]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << bit % 8]), bit // 8)
            with pytest.raises(CheckpointError, match=name):
                load(path, into=into)
            os.pwrite(file.fileno(), bytes([byte]), bit // 8)
    assert not target.any()
    assert scheduler.state == {}
    load(path, into=into)


def test_damage_to_an_array_is_named_by_its_place_in_the_tree(path):
    raw = bytearray((path / SHARD).read_bytes())
    raw[-1] ^= 0x80
    (path / SHARD).write_bytes(raw)
    refused(path, rf"{SHARD} \(tree\['w'\]\): its bytes do not match the digest")


def test_a_longer_file_is_refused(path):
    with (path / SHARD).open("ab") as file:
        file.write(b"\0")
    refused(path, f"{SHARD}.*it has .* bytes, not")


def test_every_zeroed_sector_is_refused(tmp_path, quick_sync):
    path = tmp_path / "checkpoint"
    save(path, {"w": trees.filled(np.dtype("f4"), (1000,), seed=0)})
    for name in ("manifest.json", SHARD):
        raw = (path / name).read_bytes()
        for start in range(0, len(raw), 512):
            hole = bytes(len(raw[start : start + 512]))
            (path / name).write_bytes(raw[:start] + hole + raw[start + 512 :])
            with pytest.raises(CheckpointError, match=name):
                load(path)
        (path / name).write_bytes(raw)


def test_swapped_shards_are_refused(tmp_path, quick_sync, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 8)
    path = tmp_path / "checkpoint"
    save(path, [np.array([1.0]), np.array([2.0])])
    (path / SHARD).rename(path / "other")
    (path / "data-00001.safetensors").rename(path / SHARD)
    (path / "other").rename(path / "data-00001.safetensors")
    with pytest.raises(CheckpointError, match=SHARD):
        load(path)


def test_a_shard_of_another_step_is_refused(path, tmp_path):
    save(
        tmp_path / "later",
        {"w": np.arange(2.0, 5.0), "pair": (1, b"x"), "s": Stateful({"lr": 0.5})},
    )
    shutil.copy(tmp_path / "later" / SHARD, path / SHARD)
    refused(path, r"tree\['w'\]\): its bytes do not match")


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
def test_a_missing_file_is_refused(path, name):
    (path / name).unlink()
    refused(path, name)


@pytest.mark.parametrize("name", ["data-00001.safetensors", "notes.txt", ".hidden"])
def test_an_extra_file_is_refused(path, name):
    (path / name).write_bytes(b"")
    refused(path, f"'{name}' is there, but the manifest does not list it")


@pytest.mark.parametrize("name", ["manifest.json", SHARD])
@pytest.mark.parametrize("kind", ["link", "FIFO", "directory"])
def test_what_is_no_regular_file_is_refused(path, name, kind):
    (path / name).rename(path.parent / "elsewhere")
    if kind == "link":
        (path / name).symlink_to(path.parent / "elsewhere")
    elif kind == "FIFO":
        os.mkfifo(path / name)
    else:
        (path / name).mkdir()
    refused(path, name)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{}", b"\xff", pickle.dumps({"a": 1})])
def test_what_is_no_manifest_is_refused(path, content):
    (path / "manifest.json").write_bytes(content)
    refused(path, "manifest.json: it is not")


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'{"$tuple":['])
def test_deep_nesting_is_refused(path, opening):
    (path / "manifest.json").write_bytes(opening * 100_000)
    refused(path, "manifest.json: it is not valid JSON")


def test_deep_nesting_with_a_right_digest_is_refused(path):
    tree = 1
    for _ in range(150):
        tree = [tree]
    forge.rewrite(path, lambda body: body.update(tree=tree))
    refused(path, "nested more than 100 deep")


def test_a_duplicate_key_is_refused(path):
    raw = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(raw.replace(b'{"w":', b'{"w":0,"w":'))
    refused(path, "duplicate key")


def test_a_huge_number_is_refused(path):
    raw = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(raw.replace(b'"step":null', b'"step":' + b"9" * 10**6))
    refused(path, "manifest.json")


@pytest.mark.parametrize("version", [[2, 0], [0, 9], [1], "1.0", [1, -1], [True, 0], None])
def test_an_unknown_version_is_refused(path, version):
    forge.rewrite(path, lambda body: body.update(version=version))
    refused(path, "version")


def test_a_newer_minor_version_is_read_and_its_new_fields_are_ignored(path):
    forge.rewrite(path, lambda body: body.update(version=[1, 9], comment="new"))
    assert load(path)["w"].tolist() == [1, 2, 3]


def test_an_unknown_field_of_this_version_is_refused(path):
    forge.rewrite(path, lambda body: body.update(comment="new"))
    refused(path, "its fields are")


def tensor(body):
    return body["tensors"]["w"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b: tensor(b).update(shape=[-3]), "impossible shape"),
        (lambda b: tensor(b).update(shape=[2**62, 4]), "overflowing shape"),
        (lambda b: tensor(b).update(shape=[0, 2**62, 4]), "overflowing shape"),
        (lambda b: tensor(b).update(shape=[2**40]), "header does not match"),
        (lambda b: tensor(b).update(shape=[1] * 65), "impossible shape"),
        (lambda b: tensor(b).update(shape=[3.0]), "impossible shape"),
        (lambda b: tensor(b).update(shape=[True]), "impossible shape"),
        (lambda b: tensor(b).update(shape=10**30), "impossible shape"),
        (lambda b: tensor(b).update(dtype="<i8"), "header does not match"),
        (lambda b: tensor(b).update(dtype="|O8"), "unknown dtype"),
        (lambda b: tensor(b).update(dtype="O"), "unknown dtype"),
        (lambda b: tensor(b).update(dtype="<U9999999999"), "unknown dtype"),
        (lambda b: tensor(b).update(dtype=[["a", "|O8"]]), "unknown dtype"),
        (lambda b: tensor(b).update(dtype=[["a", "<f4", [-1]]]), "unknown dtype"),
        (lambda b: tensor(b).update(dtype={}), "unknown dtype"),
        (lambda b: tensor(b).update(file="../x.safetensors"), "malformed tensor entry"),
        (lambda b: tensor(b).update(digest="0"), "malformed tensor entry"),
        (lambda b: b["tensors"].update(w=[]), "is not a table"),
        (lambda b: b["tensors"].update(t1=tensor(b)), "a tensor that is not in the tree"),
        (lambda b: b.update(tensors={}), "a file that holds no tensor"),
        (lambda b: b.update(tensors={}, files={}), r"tree\['w'\].*which is not listed"),
        (lambda b: b["files"].update({"/etc/passwd": b["files"][SHARD]}), "malformed file entry"),
        (lambda b: b["files"].update({"../x": b["files"][SHARD]}), "malformed file entry"),
        (lambda b: b["files"][SHARD].update(size=-1), "malformed file entry"),
        (lambda b: b["files"][SHARD].update(size=2**80), "malformed file entry"),
        (lambda b: b["files"][SHARD].update(header="0" * 32), "header does not match"),
        (lambda b: b.update(step=-1), "step -1 is not a count"),
        (lambda b: b.update(tree={"$array": "t9"}), "which is not listed"),
        (lambda b: b.update(tree={"$eval": "1+1", "x": 1}), "unknown tag"),
        (lambda b: b["tree"].update({"$pickle": "gA=="}), "unknown tag"),
    ],
)
def test_a_forged_manifest_is_refused(path, change, why):
    forge.rewrite(path, change)
    refused(path, why)


@pytest.mark.parametrize(
    "node",
    [
        {"$eval": "1+1"},
        {"$array": {}},
        {"$array": []},
        {"$tuple": 1},
        {"$tuple": {"a": 1}},
        {"$dict": [[1, 2], [1, 3]]},
        {"$dict": [[1.5, 2]]},
        {"$dict": [[1]]},
        {"$dict": [[{"$tuple": []}, 1]]},
        {"$dict": {"a": 1}},
        {"$dict": [[{"$bytes": ""}, 1]]},
        {"$int": 5},
        {"$int": "five"},
        {"$float": "00"},
        {"$float": 1.5},
        {"$bytes": "?"},
        {"$bytes": 1},
        {"$str": "/w=="},
        {"$scalar": {"dtype": "<f4", "data": ""}},
        {"$scalar": {"dtype": "|O8", "data": "AAAAAAAAAAA="}},
        {"$scalar": {"dtype": "<f4"}},
        {"$scalar": []},
        {"$parameter": {"id": 0, "name": None, "requires_grad": 1, "data": "x"}},
        {"$parameter": {"id": [], "name": None, "requires_grad": True, "data": "x"}},
        {"$parameter": {"id": 0, "name": 5, "requires_grad": True, "data": "x"}},
        {"$parameter": {"id": 0, "name": None, "requires_grad": True, "data": {}}},
        {"$parameter": {"id": 0, "name": None, "requires_grad": True, "data": [1.0]}},
        {"$parameter": {"id": 0, "name": None, "requires_grad": True}},
        {"$object": {"class": 1, "state": None}},
        {"$object": {"class": "X"}},
        {"$object": "X"},
    ],
    ids=str,
)
def test_a_malformed_node_is_refused_with_its_path(path, node):
    forge.rewrite(path, lambda body: body["tree"].update(bad=node))
    refused(path, r"manifest.json: tree\['bad'\]")


def parameter(name, data="x", requires_grad=True, number=0):
    payload = {"id": number, "name": name, "requires_grad": requires_grad, "data": data}
    return {"$parameter": payload}


@pytest.mark.parametrize(
    "second",
    [parameter("b"), parameter("a", "y"), parameter("a", requires_grad=1), parameter("a", {})],
    ids=str,
)
def test_a_parameter_that_is_repeated_otherwise_is_refused(path, second):
    forge.rewrite(path, lambda body: body["tree"].update(first=parameter("a"), bad=second))
    refused(path, r"manifest.json: tree\['bad'\].*another than before")


@pytest.mark.parametrize("number", [True, 0.0, -1, 2**60, None])
def test_an_id_that_is_no_count_is_refused(path, number):
    forge.rewrite(path, lambda body: body["tree"].update(bad=parameter("a", number=number)))
    refused(path, r"manifest.json: tree\['bad'\]: malformed \$parameter")


@pytest.mark.parametrize("depth", [9, 450])
def test_a_dtype_that_is_nested_deep_is_refused(path, depth):
    dtype = "<f4"
    for _ in range(depth):
        dtype = [["x", dtype]]
    forge.rewrite(path, lambda body: tensor(body).update(dtype=dtype))
    refused(path, "unknown dtype")


def test_a_dtype_that_is_nested_too_deep_to_be_read_is_not_saved(path):
    dtype = np.dtype("<f4")
    for _ in range(9):
        dtype = np.dtype([("x", dtype)])
    with pytest.raises(TypeError, match="no plain bytes"):
        save(path.parent / "other", np.zeros(3, dtype))


COLLIDING = [i * (2**61 - 1) for i in range(1, 20_001)]


def test_int_keys_that_collide_are_refused_before_they_meet_in_a_dict(path, monkeypatch):
    pairs = [[{"$int": hex(key)}, 0] for key in COLLIDING]
    forge.rewrite(path, lambda body: body["tree"].update(bad={"$dict": pairs}))
    refused(path, r"tree\['bad'\]: a dict key is neither str nor int, or the keys collide")


def test_a_dict_of_colliding_keys_is_not_saved(path):
    with pytest.raises(ValueError, match="int keys that collide"):
        save(path.parent / "other", dict.fromkeys(COLLIDING[:200]))


def test_a_flood_of_lists_is_refused_before_it_takes_memory(path):
    forge.rewrite(path, lambda body: body["tree"].update(bad=[]))
    raw = (path / "manifest.json").read_bytes()
    flood = b"[" + b"[]," * (4 << 20) + b"[]]"
    (path / "manifest.json").write_bytes(raw.replace(b'"bad":[]', b'"bad":' + flood))
    tracemalloc.start()
    try:
        refused(path, "manifest.json: it has .* lists and dicts")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(raw + flood)


@pytest.mark.parametrize(
    ("name", "tree"),
    [("MAX_COLLECTIONS", [[]] * 30), ("MAX_BYTES", "x" * 3000), ("MAX_BYTES", [np.zeros(1)] * 20)],
)
def test_a_tree_that_would_not_be_read_back_is_not_saved(path, monkeypatch, name, tree):
    monkeypatch.setattr(manifest, name, {"MAX_COLLECTIONS": 25, "MAX_BYTES": 2500}[name])
    arrays = [array.copy() for array in tree] if tree[0].__class__ is np.ndarray else tree
    with pytest.raises(ValueError, match="tree is too large"):
        save(path.parent / "other", arrays)
    assert not (path.parent / "other").exists()


def test_very_long_integers_are_told_of_without_being_written_out(path, tmp_path, capsys):
    huge = 10**5000
    save(tmp_path / "a", {huge: [huge], "x": (huge, np.zeros(2))})
    save(tmp_path / "b", {huge: [huge + 1], "x": (huge, np.ones(2))})
    assert "0x" in report.inspect(tmp_path / "a").text
    assert "0x" in report.diff(tmp_path / "a", tmp_path / "b").text
    with pytest.raises(CheckpointError, match=r"the target lacks the keys .0x"):
        load(tmp_path / "a", into={"x": None})
    with pytest.raises(TypeError, match=r"tree\[0x.* is a builtins.object"):
        save(tmp_path / "c", {huge: object()})
    with pytest.raises(ValueError, match="step=0x"):
        Checkpointer(tmp_path / "run").save(huge, {})


def test_a_class_name_cannot_move_the_cursor_of_a_terminal(path):
    forge.rewrite(
        path, lambda body: body["tree"]["s"]["$object"].update({"class": "\x1b[2JStateful\x07"})
    )
    with pytest.raises(CheckpointError, match=r"the checkpoint has '.*x1b.*Stateful") as caught:
        load(path, into={"w": None, "pair": None, "s": Stateful({})})
    texts = [str(caught.value), report.inspect(path).text, report.diff(path, path).text]
    assert not any("\x1b" in text for text in texts)


SPELLINGS = {
    b"1e+16": b"1E16",
    b"1e-07": b"0.0000001",
    b"1.5e+300": b"15e299",
    b"0.1": b"0.10",
    b'"\\u00e9"': '"\u00e9"'.encode(),
    b'"\\""': b'"\\u0022"',
    b'"\\n\\u0000/"': b'"\\u000a\\u0000/"',
    b'"\\ud83d\\ude00"': '"\U0001f600"'.encode(),
    b"true,": b"true, ",
}


@pytest.fixture
def spelled(tmp_path, quick_sync):
    values = [1e16, 1e-7, 1.5e300, 0.1, "\u00e9", '"', "\n\x00/", "\U0001f600", True, None]
    save(tmp_path / "spelled", values)
    return tmp_path / "spelled", values


def test_exponents_and_escapes_come_back(spelled):
    path, values = spelled
    raw = (path / "manifest.json").read_bytes()
    assert all(spelling in raw for spelling in SPELLINGS)
    assert trees.same(load(path), values)


@pytest.mark.parametrize("spelling", SPELLINGS, ids=repr)
def test_another_spelling_of_the_same_content_is_refused(spelled, spelling):
    path, _ = spelled
    raw = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(raw.replace(spelling, SPELLINGS[spelling], 1))
    with pytest.raises(CheckpointError, match="does not match its own digest"):
        load(path)


def test_a_number_out_of_range_is_refused(path):
    raw = (path / "manifest.json").read_bytes()
    (path / "manifest.json").write_bytes(raw.replace(b'"lr":0.5', b'"lr":1e999'))
    refused(path, "manifest.json")


def test_no_more_memory_is_taken_than_the_files_have(path):
    forge.rewrite(path, lambda body: tensor(body).update(shape=[2**36]))
    tracemalloc.start()
    try:
        refused(path, "header does not match")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**20


def test_a_file_instead_of_a_directory_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file", "Not a directory")


def test_a_manifest_larger_than_memory_is_damage_and_is_not_read(path):
    os.truncate(path / "manifest.json", 1 << 43)
    with pytest.raises(CheckpointError, match="more than any manifest"):
        load(path)
