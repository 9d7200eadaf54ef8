import copy
import os

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.checkpoint import CheckpointError, load, reader, save, shards
from lucid_gpu.checkpoint.reader import Reader
from tests.checkpoint import trees
from tests.checkpoint.stateful import Refusing, Stateful
from tests.checkpoint.test_shards import traced_peak


@pytest.fixture
def path(tmp_path, quick_sync):
    return tmp_path / "checkpoint"


def numbers(seed=0):
    return np.random.default_rng(seed).standard_normal((3, 4)).astype(np.float32)


@pytest.mark.parametrize("layout", ["C", "Fortran", "reversed", "strided"])
def test_arrays_are_restored_in_place_whatever_their_layout(path, layout):
    saved = numbers()
    save(path, [saved])
    target = trees.layouts(np.zeros((3, 4), np.float32))[layout]
    assert load(path, into=[target])[0] is target
    assert target.tolist() == saved.tolist()


@pytest.mark.parametrize("dtype", trees.DTYPES, ids=str)
def test_every_dtype_is_restored_in_place(path, dtype):
    saved = [trees.filled(dtype, shape, seed=1) for shape in [(), (0,), (3, 4)]]
    save(path, saved)
    target = [np.zeros_like(array) for array in saved]
    assert trees.same(load(path, into=target), saved)


def test_parameters_are_restored_in_place(path):
    save(path, [Parameter(numbers(), name="w", requires_grad=False), Parameter("prompt")])
    w, prompt = Parameter(np.zeros((3, 4), np.float32)), Parameter("")
    buffer = w.data
    result = load(path, into=[w, prompt])
    assert result[0] is w
    assert w.data is buffer
    assert buffer.tolist() == numbers().tolist()
    assert (w.requires_grad, prompt.data) == (False, "prompt")


def test_objects_take_their_state(path):
    save(path, {"scheduler": Stateful({"epoch": 3, "w": numbers()})})
    scheduler = Stateful({})
    assert load(path, into={"scheduler": scheduler})["scheduler"] is scheduler
    assert trees.same(scheduler.state, {"epoch": 3, "w": numbers()})


def test_plain_values_and_none_are_answered_with_what_was_saved(path):
    save(path, {"epoch": 7, "name": "run", "history": [1.0, {"w": numbers()}], "at": (1, 2)})
    result = load(path, into={"epoch": 0, "name": "", "history": None, "at": (None, 5)})
    assert trees.same(
        result, {"epoch": 7, "name": "run", "history": [1.0, {"w": numbers()}], "at": (1, 2)}
    )


def test_a_shared_array_is_restored_into_every_place(path):
    w = numbers()
    save(path, [w, w])
    a, b = np.zeros_like(w), np.asfortranarray(np.zeros_like(w))
    load(path, into=[a, b])
    assert a.tolist() == b.tolist() == w.tolist()


def test_an_array_can_be_both_restored_in_place_and_returned(path):
    w = numbers()
    save(path, {"place": w, "value": w})
    place = np.asfortranarray(np.zeros_like(w))
    result = load(path, into={"place": place, "value": None})
    assert place.tolist() == result["value"].tolist() == w.tolist()


SAVED = {
    "w": np.ones(3, np.float32),
    "p": Parameter(np.ones(3, np.float32), name="p"),
    "t": Parameter("text"),
    "s": Stateful({"epoch": 1}),
    "l": [1, 2],
    "tuple": (1,),
}


@pytest.mark.parametrize(
    ("key", "target", "why"),
    [
        ("w", np.zeros(4, np.float32), r"tree\['w'\]: shape \(3,\) was saved"),
        ("w", np.zeros(3, np.float64), r"tree\['w'\]: dtype float32 was saved"),
        ("w", np.zeros(3, ">f4"), r"tree\['w'\]: dtype float32 was saved"),
        ("w", Parameter(np.zeros(3, np.float32)), "has an array, and the target is a Parameter"),
        ("w", np.broadcast_to(np.float32(0), (3,)), r"tree\['w'\]: the target is read-only"),
        ("w", 3, "put None there"),
        ("p", Parameter(np.zeros(2, np.float32)), r"tree\['p'\]\.data: shape"),
        ("p", Parameter(np.zeros(3, np.float32), name="q"), "'p' was saved"),
        ("p", Parameter("text"), "the target holds text"),
        ("p", np.zeros(3, np.float32), "has a parameter, and the target is an array"),
        ("t", Parameter(np.zeros(3, np.float32)), "has text, and the target holds an array"),
        ("s", Refusing({"epoch": 2}), "has Stateful, and the target is a Refusing"),
        ("s", {"epoch": 1}, "has an object, and the target is a dict"),
        ("l", [1], "2 items were saved, and the target has 1"),
        ("l", (1, 2), "has a list, and the target is a tuple"),
        ("tuple", [1], "has a tuple, and the target is a list"),
        ("l", {1, 2}, "put None there"),
        ("l", range(2), "put None there"),
        ("new", 1, r"tree: only the target has the keys \['new'\]$"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(path, key, target, why):
    save(path, SAVED)
    first = np.zeros(3, np.float32)
    into = {**dict.fromkeys(SAVED), "w": first, key: target}
    before = copy.deepcopy(into)
    with pytest.raises(CheckpointError, match=why):
        load(path, into=into)
    assert trees.same(unwrap(into), unwrap(before))


def unwrap(tree):
    return {k: v.state_dict() if isinstance(v, Stateful) else v for k, v in tree.items()}


def test_two_saved_arrays_for_one_buffer_are_refused(path):
    save(path, [numbers(0), numbers(1)])
    target = np.zeros((3, 4), np.float32)
    with pytest.raises(CheckpointError, match="two arrays were saved"):
        load(path, into=[target, target])
    assert not target.any()


def test_when_one_object_refuses_the_others_and_all_arrays_stay_as_they_were(path):
    Twin = type("Refusing", (Stateful,), {})
    save(path, [numbers(), Stateful({"epoch": 1}), Twin({"model": "other"})])
    w, scheduler, refusing = np.zeros((3, 4), np.float32), Stateful({"epoch": 9}), Refusing({})
    with pytest.raises(CheckpointError, match=r"tree\[2\]: Refusing refused its state"):
        load(path, into=[w, scheduler, refusing])
    assert (scheduler.state, refusing.state, w.any()) == ({"epoch": 9}, {}, False)


def test_damage_anywhere_leaves_everything_as_it_was(path):
    save(path, [numbers(0), Stateful({"w": numbers(1)}), numbers(2)])
    shard = path / "data-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    targets = [np.zeros((3, 4), np.float32), Stateful({}), np.zeros((3, 4), np.float32)]
    with pytest.raises(CheckpointError, match=r"data-00000.safetensors \(tree\[2\]\)"):
        load(path, into=targets)
    assert not targets[0].any()
    assert not targets[2].any()
    assert targets[1].state == {}


def test_a_disk_that_fails_after_the_check_is_an_error_and_objects_are_put_back(path, monkeypatch):
    save(path, [numbers(), Stateful({"epoch": 1})])
    scheduler = Stateful({"epoch": 9})
    read, calls = os.preadv, []

    def failing(descriptor, buffers, offset):
        calls.append(offset)
        if len(calls) == verified + 1:
            raise OSError(5, "Input/output error")
        return read(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", failing)
    verified = 10**6
    load(path, into=[np.zeros((3, 4), np.float32), Stateful({})])
    verified = len(calls) - 1
    calls.clear()
    with pytest.raises(CheckpointError, match=r"Input/output error.*may be half restored"):
        load(path, into=[np.zeros((3, 4), np.float32), scheduler])
    assert scheduler.state == {"epoch": 9}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_while_arrays_are_written_waits_until_all_of_them_are(
    path, monkeypatch, interruption
):
    save(path, [np.ones(3), np.ones(4), np.ones(5)[::2], 7])
    read, calls = shards.read_tensor, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise interruption
        return read(*arguments)

    targets = [np.zeros(3), np.zeros(4), np.zeros(5)[::2], None]
    monkeypatch.setattr(shards, "read_tensor", interrupted)
    with pytest.raises(interruption):
        load(path, into=targets)
    assert [target.sum() for target in targets[:3]] == [3, 4, 3]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_while_objects_load_puts_them_back(path, interruption):
    class Slow(Stateful):
        def load_state_dict(self, state):
            self.state = dict(state)
            if state == {"new": 2}:
                raise interruption

    save(path, [Slow({"new": 1}), Slow({"new": 2}), np.ones(3)])
    first, second, array = Slow({"mine": 1}), Slow({"mine": 2}), np.zeros(3)
    with pytest.raises(interruption):
        load(path, into=[first, second, array])
    assert (first.state, second.state) == ({"mine": 1}, {"mine": 2})
    assert not array.any()


class Wavering(Stateful):
    """An object that takes half of a state and then refuses it."""

    def load_state_dict(self, state):
        self.state = dict(state)
        if "bad" in state:
            raise ValueError("this state is bad")


def test_an_object_that_changes_itself_and_then_refuses_is_put_back(path):
    save(path, [Wavering({"good": 1}), Wavering({"bad": 1})])
    first, second = Wavering({"mine": 1}), Wavering({"mine": 2})
    with pytest.raises(CheckpointError, match=r"tree\[1\]: Wavering refused its state"):
        load(path, into=[first, second])
    assert (first.state, second.state) == ({"mine": 1}, {"mine": 2})


def test_arrays_that_are_not_contiguous_are_read_together(path, monkeypatch):
    save(path, [np.full(4, i) for i in range(300)])
    rounds = []
    check = Reader._check

    def counted(reader, names, read):
        rounds.append(len(set(names)))
        check(reader, names, read)

    monkeypatch.setattr(Reader, "_check", counted)
    targets = [np.zeros(8, int)[::2] for _ in range(300)]
    load(path, into=targets)
    assert [target[0] for target in targets] == list(range(300))
    assert [count for count in rounds if count] == [300, 300]


def test_arrays_that_are_not_contiguous_take_the_memory_of_a_part(path, monkeypatch):
    monkeypatch.setattr(reader, "_PART_BYTES", 1 << 18)
    save(path, [np.full(1 << 14, i, np.float64) for i in range(64)])
    targets = [np.zeros(1 << 15)[::2] for _ in range(64)]
    assert traced_peak(lambda: load(path, into=targets)) < 3 << 20
    assert [target[-1] for target in targets] == list(range(64))


def test_an_optimizer_is_restored_with_one_more_copy_of_its_state_and_no_more(path):
    params = [Parameter(np.ones(1 << 14, np.float32)) for _ in range(32)]
    optimizer = optim.Adam(params, lr=0.1)
    for p in params:
        p.grad = np.ones_like(p.data)
    optimizer.step()
    state = 2 * 32 * params[0].data.nbytes
    save(path, optimizer)
    optimizer.step()
    load(path, into=optimizer)
    assert traced_peak(lambda: load(path, into=optimizer)) < 1.5 * state
    assert optimizer.state_dict()["state"][0]["step"] == 1


def test_an_optimizer_is_put_back_if_a_later_object_refuses(path):
    optimizer = optim.Adam([Parameter(np.ones(3, np.float32))])
    optimizer.param_groups[0]["params"][0].grad = np.ones(3, np.float32)
    optimizer.step()
    save(path, [optimizer, Refusing({"model": "other"})])
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(CheckpointError, match="refused its state"):
        load(path, into=[optimizer, Refusing({})])
    assert trees.same(optimizer.state_dict(), before)


def test_device_and_into_exclude_each_other(path):
    save(path, 1)
    with pytest.raises(ValueError, match="device and into exclude each other"):
        load(path, device="cpu", into=0)


def test_an_unknown_device_is_refused(path):
    save(path, 1)
    with pytest.raises(ValueError, match="device='gpu' is unknown"):
        load(path, device="gpu")


def test_what_fits_is_restored_and_the_rest_is_left_and_listed(path):
    save(
        path,
        {
            "same": numbers(1),
            "shape": np.ones(3),
            "kind": [1, 2],
            "p": Parameter(np.ones(2), name="p"),
            "s": Stateful({"epoch": 3}),
            "nested": {"a": np.ones(2), "old": 1},
            "epoch": 7,
        },
    )
    into = {
        "same": np.zeros((3, 4), np.float32),
        "shape": np.zeros(4),
        "kind": (5, 6, 7),
        "p": Parameter(np.zeros(2), name="q"),
        "s": Refusing({"epoch": 0}),
        "nested": {"a": np.zeros(2), "new": "mine"},
        "epoch": 0,
    }
    with pytest.warns(UserWarning, match="these parts were not loaded") as told:
        result = load(path, into=into, strict=False)
    assert trees.same(result["same"], numbers(1))
    assert result["same"] is into["same"]
    assert (result["shape"].any(), result["kind"], result["epoch"]) == (False, (5, 6, 7), 7)
    assert result["p"].data.tolist() == [0, 0]
    assert result["s"].state == {"epoch": 0}
    assert result["nested"]["a"].tolist() == [1, 1]
    assert result["nested"]["new"] == "mine"
    lines = str(told[0].message).splitlines()[1:]
    assert [line.split(":")[0] for line in lines] == [
        "  - tree['shape']",
        "  - tree['kind']",
        "  - tree['p']",
        "  - tree['s']",
        "  - tree['nested']",
    ]


def test_an_optimizer_takes_what_fits_if_asked_to(path):
    shapes = {"a": 3, "b": 2}
    a, b = (Parameter(np.ones(size, np.float32), name=name) for name, size in shapes.items())
    optimizer = optim.Adam([a, b])
    a.grad, b.grad = np.ones(3, np.float32), np.ones(2, np.float32)
    optimizer.step()
    save(path, {"optimizer": optimizer})
    other = optim.Adam([a, Parameter(np.ones(5, np.float32), name="b")])
    with pytest.raises(CheckpointError, match="Adam refused its state"):
        load(path, into={"optimizer": other})
    with pytest.warns(UserWarning, match="were not loaded"):
        load(path, into={"optimizer": other}, strict=False)
    assert list(other.state_dict()["state"]) == [0]


def test_an_object_that_refuses_is_an_error_even_if_not_strict(path):
    save(path, [numbers(), Stateful({"epoch": 1})])
    target, refusing = np.zeros((3, 4), np.float32), type("Stateful", (Refusing,), {})({"a": 1})
    with pytest.raises(CheckpointError, match="refused its state"):
        load(path, into=[target, refusing], strict=False)
    assert not target.any()


def test_damage_is_an_error_even_if_not_strict(path):
    save(path, {"w": numbers()})
    shard = path / "data-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    with pytest.raises(CheckpointError, match="do not match"):
        load(path, into={"w": np.zeros((3, 4), np.float32), "x": 1}, strict=False)


def test_not_to_be_strict_about_nothing_is_refused(path):
    save(path, 1)
    with pytest.raises(ValueError, match="give the tree to restore"):
        load(path, strict=False)
