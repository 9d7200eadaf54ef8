"""Containers, records and random state: as plain data, and into what is there."""

import dataclasses
import enum
import json
import random
import re
import subprocess
import sys
from collections import OrderedDict, defaultdict, namedtuple
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, load, report, save
from tests.checkpoint import forge, trees

Point = namedtuple("Point", "x y")


class Mode(enum.Enum):
    TRAIN = "train"
    EVAL = "eval"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Right(enum.Flag):
    READ = 1
    WRITE = 2


@dataclasses.dataclass
class Settings:
    rate: float
    weights: np.ndarray
    mode: Mode


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    depth: int
    late: float = dataclasses.field(default=0.0, init=False)


@pytest.fixture
def path(tmp_path, quick_sync):
    return tmp_path / "checkpoint"


PLAIN = {
    "complex": (1 - 2j, 1 - 2j),
    "nan": (complex("nan-0j"), complex("nan-0j")),
    "set": ({3, "a", (1, None)}, {3, "a", (1, None)}),
    "frozenset": (frozenset({frozenset({1}), b"x"}), frozenset({frozenset({1}), b"x"})),
    "OrderedDict": (OrderedDict(b=1, a={2: 3}), OrderedDict(b=1, a={2: 3})),
    "OrderedDict of ints": (OrderedDict([(2, "$x"), (1, 5)]), OrderedDict([(2, "$x"), (1, 5)])),
    "defaultdict": (defaultdict(list, {"a": [1]}), {"a": [1]}),
    "path": (PurePosixPath("a/\u00e9"), Path("a/\u00e9")),
    "enum": (Mode.EVAL, "eval"),
    "IntEnum": (Level.HIGH, 2),
    "Flag": (Right.READ | Right.WRITE, 3),
    "namedtuple": (Point(1, [2]), (1, [2])),
    "dataclass": (Frozen(3), {"depth": 3, "late": 0.0}),
}


def named(value):
    """What a test is called by: the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(("value", "expected"), PLAIN.values(), ids=PLAIN)
def test_a_container_comes_back_as_plain_data(path, value, expected):
    save(path, {"v": value})
    loaded = load(path)["v"]
    assert type(loaded) is type(expected)
    assert repr(loaded) == repr(expected) or loaded == expected


def test_arrays_in_containers_are_arrays(path):
    save(
        path,
        [Point(np.ones(2), 1), Settings(0.1, np.arange(3), Mode.TRAIN), OrderedDict(a=np.ones(1))],
    )
    (x, y), settings, ordered = load(path)
    assert trees.same([x, y], [np.ones(2), 1])
    assert trees.same(settings["weights"], np.arange(3))
    assert trees.same(ordered["a"], np.ones(1))
    raw = json.loads((path / "manifest.json").read_bytes())
    assert set(raw["tensors"]) == {"0/x", "1/weights", "2/a"}


def test_containers_are_restored_into_what_is_there(path):
    def tree(fill):
        return {
            "point": Point(np.full(2, fill), fill),
            "settings": Settings(fill, np.full(3, fill), Mode.EVAL if fill else Mode.TRAIN),
            "frozen": Frozen(int(fill)),
            "ordered": OrderedDict(b=fill, a=2),
            "default": defaultdict(list, {"k": [fill]}),
            "modes": [Level.HIGH if fill else Level.LOW, Right.READ | Right.WRITE],
            "plain": [{1} if fill else set(), Path("a"), 1j * fill],
        }

    save(path, tree(1.0))
    into = tree(0.0)
    weights = into["settings"].weights
    result = load(path, into=into)
    assert result["point"].x is into["point"].x
    assert result["point"] == Point(result["point"].x, 1.0)
    assert result["settings"].weights is weights
    assert weights.tolist() == [1, 1, 1]
    assert (result["settings"].rate, result["settings"].mode) == (1.0, Mode.EVAL)
    assert result["frozen"] == Frozen(1)
    assert type(result["ordered"]) is OrderedDict
    assert result["default"]["new"] == []
    assert result["modes"] == [Level.HIGH, Right.READ | Right.WRITE]
    assert result["plain"] == [{1}, Path("a"), 1j]


def test_an_ordered_dict_has_the_order_that_was_saved(path):
    save(path, OrderedDict(b=1, a=2))
    assert list(load(path, into=OrderedDict(a=0, b=0)).items()) == [("b", 1), ("a", 2)]


Other = namedtuple("Other", "x y")
Point3 = namedtuple("Point", "x y z")


@pytest.mark.parametrize(
    ("value", "target", "why"),
    [
        (Point(1, 2), Other(0, 0), "has a named, and the target is a Other"),
        (Point(1, 2), Point3(0, 0, 0), r"fields \['x', 'y'\] were saved, and Point has"),
        (Point(1, 2), (0, 0), "has a named, and the target is a tuple"),
        (Frozen(1), Point(0, 0), "has a dataclass, and the target is a Point"),
        ({"a": 1}, OrderedDict(a=1), "has a dict, and the target is a OrderedDict"),
        (OrderedDict(a=1), {"a": 1}, "has an ordered, and the target is a dict"),
        (Mode.EVAL, Level.LOW, "has an enum, and the target is"),
        ({1, 2}, [1, 2], "has a set, and the target is a list"),
        (np.random.default_rng(0), random.Random(0), "and the target is <random.Random"),
        (np.random.default_rng(0), 5, "put None there"),
        (5, np.random.default_rng(0), "has an int, and the target is Generator"),
        (
            np.random.Generator(np.random.SFC64(0)),
            np.random.default_rng(0),
            r"has Generator\(SFC64\)",
        ),
    ],
    ids=named,
)
def test_a_container_that_does_not_fit_is_refused(path, value, target, why):
    save(path, {"v": value})
    with pytest.raises(CheckpointError, match=why):
        load(path, into={"v": target})


def test_a_member_that_an_enum_no_longer_has_is_refused(path):
    save(path, Mode.EVAL)
    smaller = enum.Enum("Mode", {"TRAIN": "train"})
    with pytest.raises(CheckpointError, match="Mode has no member 'EVAL'"):
        load(path, into=smaller.TRAIN)


GENERATORS = {
    "Random": random.Random,
    "RandomState": np.random.RandomState,
    **{
        name: lambda seed, name=name: np.random.Generator(getattr(np.random, name)(seed))
        for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
    },
}


def draw(generator):
    if isinstance(generator, random.Random):
        return [generator.random() for _ in range(9)] + [generator.gauss(0, 1) for _ in range(3)]
    few = generator.standard_normal(3).tolist()
    integers = getattr(generator, "integers", None) or generator.randint
    return few + integers(0, 100, 1300, dtype=np.uint32).tolist()


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_generator_goes_on_where_it_was_saved(path, kind):
    generator = GENERATORS[kind](7)
    draw(generator)
    save(path, {"rng": generator})
    place = GENERATORS[kind](0)
    loaded = load(path)["rng"]
    assert load(path, into={"rng": place})["rng"] is place
    expected = draw(generator)
    assert draw(loaded) == expected
    assert draw(place) == expected


def test_a_generator_stays_as_it_is_when_another_part_is_refused(path):
    save(path, [np.random.default_rng(1), 5])
    place = np.random.default_rng(2)
    with pytest.raises(CheckpointError):
        load(path, into=[place, np.zeros(3)])
    assert draw(place) == draw(np.random.default_rng(2))


def test_a_background_save_holds_the_state_at_the_call(tmp_path, quick_sync):
    generator = np.random.Generator(np.random.MT19937(1))
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, generator, block=False)
        expected = draw(generator)
        assert draw(checkpointer.restore()) == expected


def test_the_order_of_a_set_does_not_change_the_file(tmp_path):
    program = (
        "import sys; from lucid_gpu.checkpoint import save;"
        "save(sys.argv[1], {str(i) for i in range(100)} | {i for i in range(100)})"
    )
    found = []
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / seed)],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
        )
        found.append((tmp_path / seed / "manifest.json").read_bytes())
    assert found[0] == found[1]


class Odd(enum.Enum):
    ODD = object()


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Odd.ODD, "whose value is no str or number"),
        (np.random.RandomState(np.random.PCG64(1)), "PCG64 of a RandomState is not known"),
        ({frozenset({1}), range(2)}, "tree{…} is a builtins.range"),
        (random.SystemRandom(), "random.SystemRandom"),
        ({i * (2**61 - 1) for i in range(200)}, "items that collide"),
    ],
    ids=named,
)
def test_what_cannot_be_saved_is_refused(path, value, why):
    with pytest.raises((TypeError, ValueError), match=why):
        save(path, value)


def state(bits, **parts):
    generator = np.random.Generator(bits(0))
    plain = json.loads(json.dumps(generator.bit_generator.state, default=lambda a: a.tolist()))
    plain.update(parts)
    return {"$random": {"class": "Generator", "state": encoded(plain)}}


def encoded(value):
    if isinstance(value, dict):
        return {key: encoded(part) for key, part in value.items()}
    return {"$int": hex(value)} if isinstance(value, int) and value >= 2**53 else value


MT = np.random.MT19937


@pytest.mark.parametrize(
    "node",
    [
        {"$random": {"class": "Generator", "state": {"bit_generator": "Evil"}}},
        {"$random": {"class": "os.system", "state": {"bit_generator": "PCG64"}}},
        {"$random": {"class": "Generator"}},
        {"$random": {"class": "Random", "state": {"version": 3, "words": [1], "gauss": None}}},
        {"$random": {"class": "Random", "state": {"version": 3, "words": 5, "gauss": None}}},
        {"$random": {"class": [], "state": {}}},
        state(MT, state={"key": [0] * 624, "pos": 625}),
        state(MT, state={"key": [0] * 623, "pos": 0}),
        state(MT, state={"key": [0.5] * 624, "pos": 0}),
        state(MT, state={"key": [2**40] * 624, "pos": 0}),
        state(MT, state={"key": "x", "pos": 0}),
        state(MT, state={"key": [0] * 624}),
        state(np.random.Philox, buffer_pos=5),
        state(np.random.Philox, buffer=[1]),
        state(np.random.SFC64, state={"state": [1, 2, 3]}),
        state(np.random.SFC64, state=[]),
        state(np.random.PCG64, has_uint32=2),
        state(np.random.PCG64, uinteger=-1),
        {"$set": [[]]},
        {"$set": [1, 1]},
        {"$set": 1},
        {"$set": [{"$tuple": [{"$int": hex(i * (2**61 - 1))}]} for i in range(200)]},
        {"$frozenset": {"a": 1}},
        {"$complex": "00"},
        {"$complex": 1},
        {"$path": 5},
        {"$path": []},
        {"$enum": {"class": "Mode", "name": [], "value": 1}},
        {"$enum": {"class": "Mode", "name": "EVAL", "value": []}},
        {"$enum": {"class": "Mode"}},
        {"$named": {"class": 1, "fields": {}}},
        {"$named": {"class": "P", "fields": []}},
        {"$dataclass": {"class": "P"}},
        {"$ordered": [[1]]},
        {"$ordered": {"a": 1}},
    ],
    ids=lambda node: str(node)[:60],
)
def test_a_malformed_node_is_refused_with_its_path(path, node):
    save(path, {"bad": 0})
    forge.rewrite(path, lambda body: body["tree"].update(bad=node))
    with pytest.raises(CheckpointError, match=r"manifest.json: tree\['bad'\]"):
        load(path)


def test_containers_are_described_and_compared(tmp_path, quick_sync):
    before = {
        "p": Point(np.ones(2), 1),
        "d": Frozen(1),
        "r": np.random.default_rng(0),
        "s": {1, 2},
        "o": OrderedDict(a=1),
        "e": Mode.EVAL,
    }
    save(tmp_path / "a", before)
    save(
        tmp_path / "b",
        {
            "p": Other(np.ones(2), 2),
            "d": Frozen(2),
            "r": np.random.default_rng(1),
            "s": {1, 3},
            "o": {"a": 1},
            "e": Mode.TRAIN,
        },
    )
    assert report.inspect(tmp_path / "a").text.splitlines()[1:] == [
        "tree:",
        "  p: Point",
        "    x: float64 [2] 16 B",
        "    y: 1",
        "  d: Frozen",
        "    depth: 1",
        "    late: 0.0",
        "  r: Generator",
        "  s: {1, 2}",
        "  o: OrderedDict({'a': 1})"
        if sys.version_info >= (3, 12)
        else "  o: OrderedDict([('a', 1)])",
        "  e: 'eval'",
    ]
    assert report.diff(tmp_path / "a", tmp_path / "b").text.splitlines() == [
        "tree['p']: class 'Point' became 'Other'",
        "tree['p']['y']: 1 became 2",
        "tree['d']['depth']: 1 became 2",
        "tree['r']: another state",
        "tree['s']: {1, 2} became {1, 3}",
        "tree['o']: OrderedDict([('a', 1)]) became {'a': 1}"
        if sys.version_info < (3, 12)
        else "tree['o']: OrderedDict({'a': 1}) became {'a': 1}",
        "tree['e']: 'eval' became 'train'",
    ]
    assert report.diff(tmp_path / "a", tmp_path / "a").exit_code == 0
