import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu import Parameter, optim
from lucid_gpu.checkpoint import CheckpointError, load, save
from lucid_gpu.checkpoint.place import Place
from lucid_gpu.checkpoint.reader import Reader
from lucid_gpu.checkpoint.select import matching
from tests.checkpoint import trees
from tests.checkpoint.stateful import Stateful


def tree():
    return {
        "model": {"h.0.weight": np.arange(3.0), "h.1.weight": np.ones(2), "bias": Parameter([1.0])},
        "optimizer": Stateful({"state": {0: {"step": 3, "m": np.zeros(2)}}, "lr": 0.5}),
        "history": [{"loss": 1.0, "at": (np.ones(1), 2)}, "text"],
        7: np.arange(2),
    }


@pytest.fixture
def path(tmp_path, quick_sync):
    save(tmp_path / "checkpoint", tree())
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        ("model/**", {"model": tree()["model"]}),
        ("model", {"model": tree()["model"]}),
        ("model/*.weight", {"model": {k: v for k, v in tree()["model"].items() if "weight" in k}}),
        ("**/m", {"optimizer": {"state": {0: {"m": np.zeros(2)}}}}),
        ("optimizer/state/0/step", {"optimizer": {"state": {0: {"step": 3}}}}),
        ("optimizer", {"optimizer": tree()["optimizer"].state}),
        ("history/0/at/1", {"history": [{"at": (None, 2)}, None]}),
        ("7", {7: np.arange(2)}),
        (["7", "history/1"], {"history": [None, "text"], 7: np.arange(2)}),
    ],
    ids=str,
)
def test_what_is_selected_comes_back_with_all_below_it(path, select, expected):
    assert trees.same(load(path, select=select), expected)


def test_everything_can_be_selected(path):
    assert trees.same(load(path, select="**"), load(path))


def test_only_what_is_selected_is_read(path, monkeypatch):
    names = []
    check = Reader._check
    monkeypatch.setattr(Reader, "_check", lambda *args: names.extend(args[1]) or check(*args))
    load(path, select="model/*.weight")
    assert sorted(names) == ["model/h.0.weight", "model/h.1.weight"]


def test_damage_to_what_is_not_selected_does_no_harm(path):
    file = path / "data-00000.safetensors"
    raw = file.read_bytes()
    file.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert load(path, select="model/h.0.weight")["model"]["h.0.weight"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match="do not match"):
        load(path)


def test_what_is_selected_is_restored_in_place_and_the_rest_is_left(path):
    target = tree()
    target["model"]["h.0.weight"][...] = 9
    target["model"]["bias"].data[...] = 9
    target[7][...] = 9
    target["optimizer"].state = {}
    result = load(path, into=target, select=["model/h.*", "optimizer/**"])
    assert target["model"]["h.0.weight"].tolist() == [0, 1, 2]
    assert target["model"]["bias"].data.tolist() == [9]
    assert target[7].tolist() == [9, 9]
    assert trees.same(target["optimizer"].state, tree()["optimizer"].state)
    assert list(result) == ["model", "optimizer"]
    assert result["model"]["h.0.weight"] is target["model"]["h.0.weight"]


def test_the_state_of_an_optimizer_alone_is_restored(tmp_path, quick_sync):
    w = Parameter(np.ones(3, np.float32), name="w")
    optimizer = optim.Adam([w])
    w.grad = np.ones(3, np.float32)
    optimizer.step()
    save(tmp_path / "c", {"w": w, "optimizer": optimizer})
    optimizer.step()
    moved = w.data.copy()
    load(tmp_path / "c", into={"w": w, "optimizer": optimizer}, select="optimizer")
    assert optimizer.state_dict()["state"][0]["step"] == 1
    assert w.data.tolist() == moved.tolist()


@pytest.mark.parametrize("into", [None, {"model": {"other": None}}])
def test_what_selects_nothing_is_refused(path, into):
    with pytest.raises(CheckpointError, match=r"select='modell/\*' chooses nothing"):
        load(path, into=into, select="modell/*")


@pytest.mark.parametrize("select", [[], 5, ["a", 5]])
def test_what_is_no_pattern_is_refused(path, select):
    with pytest.raises(TypeError, match="select must be a pattern"):
        load(path, select=select)


KEYS = st.text(st.sampled_from("ab."), max_size=3)


@given(
    pattern=st.lists(st.just("**") | KEYS | KEYS.map(lambda key: f"{key}*"), min_size=1),
    keys=st.lists(KEYS.filter(bool), min_size=1, max_size=6),
)
def test_patterns_mean_what_regular_expressions_mean(pattern, keys):
    parts = ["(?:[^/]*/)*" if part == "**" else glob(part) + "/" for part in pattern]
    expected = re.fullmatch("".join(parts), "".join(f"{key}/" for key in keys)) is not None
    assert matching("/".join(pattern))(Place(tuple(keys))) == expected


def glob(part):
    return re.escape(part).replace("\\*", "[^/]*")
