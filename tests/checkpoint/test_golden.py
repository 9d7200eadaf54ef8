"""The format is frozen: what was written once is read for ever, and written the same way."""

import random
from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.checkpoint import Checkpointer, load, shards
from lucid_gpu.checkpoint.decode import Decoder
from tests.checkpoint import trees
from tests.checkpoint.stateful import Stateful

GOLDEN = Path(__file__).parent / "golden"
STEP = "step-000000001200"
VERSIONS = {"1.0": GOLDEN / STEP, "1.1": GOLDEN / "1.1" / STEP}


def tree():
    shared = np.arange(6, dtype=np.float32).reshape(2, 3)
    return {
        "model": {
            "w": Parameter(shared, name="w"),
            "prompt": Parameter("Answer briefly.", requires_grad=False, name="prompt"),
            "shared": shared,
        },
        "arrays": [
            np.array([1.5, -0.0], ml_dtypes.bfloat16),
            np.array([0.5, 448], ml_dtypes.float8_e4m3fn),
            np.array([1 + 2j], np.complex128),
            np.array([1, 2], ">i4"),
            np.array([["x", "yz"]]),
            np.array(["2026-01-01"], "M8[D]"),
            np.array([(1, 2.5)], [("n", "<i4"), ("v", "<f8")]),
            np.array(True),
            np.empty((0, 3), np.float16),
        ],
        "scalars": (np.float32(0.1), np.bool_(True), np.str_("a"), np.int8(-1)),
        "numbers": [0, -1, 2**53, -(2**70), 0.1, -0.0, float("inf"), float("nan"), True, None],
        "text": ["\u00e9\U0001f600", "\udc80", b"\x00\xff", ""],
        "keys": {1: "int", "1": "str", "$tag": "dollar", -(2**60): "big"},
        "scheduler": Stateful({"last_epoch": 3, "lrs": (0.1, 0.2)}),
    }


def tree_1_1():
    return {
        **tree(),
        "containers": [
            OrderedDict(b=1, a=2),
            {3, "x"},
            frozenset({b"y"}),
            1 - 2j,
            Path("data/images"),
            Mode.EVAL,
            Point(np.arange(2), 3),
            Settings(0.5),
        ],
        "random": [np.random.default_rng(1), np.random.RandomState(2), random.Random(3)],
    }


class Mode(Enum):
    EVAL = "eval"


class Point(NamedTuple):
    x: np.ndarray
    y: int


@dataclass
class Settings:
    rate: float


def loaded_tree():
    return {**tree(), "scheduler": {"last_epoch": 3, "lrs": (0.1, 0.2)}}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_checkpoint_of_every_version_loads(version):
    loaded = load(VERSIONS[version])
    assert trees.same({key: loaded[key] for key in tree()}, loaded_tree())


def test_the_containers_and_random_state_of_version_1_1_load():
    loaded = load(VERSIONS["1.1"])
    point = loaded["containers"].pop(6)
    assert trees.same(point, (np.arange(2), 3))
    assert loaded["containers"] == [
        OrderedDict(b=1, a=2),
        {3, "x"},
        frozenset({b"y"}),
        1 - 2j,
        Path("data/images"),
        "eval",
        {"rate": 0.5},
    ]
    for found, saved in zip(loaded["random"], tree_1_1()["random"], strict=True):
        method = "random" if isinstance(saved, random.Random) else "random_sample"
        method = method if hasattr(saved, method) else "random"
        assert getattr(found, method)() == getattr(saved, method)()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_checkpoint_of_every_version_is_restored_in_place(version):
    place = {**dict.fromkeys(load(VERSIONS[version])), **tree()}
    place["model"]["w"].data[...] = 0
    place["arrays"][0][...] = 0
    load(VERSIONS[version], into=place)
    assert place["model"]["w"].data.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert place["arrays"][0].tolist() == [1.5, 0]


def test_the_same_tree_is_written_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 64)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1200, tree_1_1())
    written = {file.name: file.read_bytes() for file in (tmp_path / STEP).iterdir()}
    golden = {file.name: file.read_bytes() for file in VERSIONS["1.1"].iterdir()}
    assert written == golden


@pytest.mark.parametrize("version", VERSIONS)
def test_the_golden_manifest_begins_with_format_version_and_step(version):
    numbers = version.replace(".", ",")
    line = f'{{"format":"lucid_gpu.checkpoint","version":[{numbers}],"step":1200'
    assert (VERSIONS[version] / "manifest.json").read_text().startswith(line)


def test_every_tag_is_described():
    text = (Path(__file__).parents[2] / "docs" / "checkpoint-format.md").read_text()
    assert [tag for tag in Decoder._by_tag if f"| `{tag}` |" not in text] == []
