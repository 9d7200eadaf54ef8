import json

import ml_dtypes
import numpy as np
import pytest
import xxhash

from lucid_gpu import Parameter
from lucid_gpu.checkpoint import Checkpointer, save
from lucid_gpu.checkpoint.report import diff, inspect, verify
from lucid_gpu.command import cli
from tests.checkpoint.stateful import Stateful


class Adam(Stateful):
    pass


def state():
    return {
        "model": {"w": Parameter(np.ones((2, 3), np.float32), name="w"), "b": np.zeros(5)},
        "optimizer": Adam(
            {
                "state": {0: {"step": 7, "exp_avg": np.zeros((2, 3), np.float32)}},
                "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0]}],
            }
        ),
        "epoch": 3,
        "prompt": Parameter("Be brief.", requires_grad=False),
    }


@pytest.fixture
def run(tmp_path, quick_sync):
    """A run with the steps 1 and 2."""
    with Checkpointer(tmp_path / "run") as checkpointer:
        checkpointer.save(1, state())
        checkpointer.save(2, state())
    return tmp_path / "run"


def damage(run, step):
    shard = run / f"step-{step:012d}" / "data-00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)


def test_inspect_prints_the_tree_with_dtypes_shapes_sizes_and_hyperparameters(run):
    text, exit_code = inspect(run / "step-000000000001")
    assert exit_code == 0
    assert text.splitlines() == [
        f"{run}/step-000000000001: step 1, 3 arrays in 1 file, 88 B",
        "tree:",
        "  model:",
        "    w: Parameter 'w' float32 [2, 3] 24 B",
        "    b: float64 [5] 40 B",
        "  optimizer: Adam",
        "    state:",
        "      [0]:",
        "        step: 7",
        "        exp_avg: float32 [2, 3] 24 B",
        "    param_groups: [{'lr': 0.001, 'betas': (0.9, 0.999), 'params': [0]}]",
        "  epoch: 3",
        "  prompt: Parameter 'Be brief.', frozen",
    ]


def test_inspect_speaks_to_programs(run):
    text, exit_code = inspect(run, as_json=True)
    facts = json.loads(text)
    assert exit_code == 0
    assert (facts["path"], facts["step"]) == (str(run / "step-000000000002"), 2)
    assert facts["nbytes"] == 88
    assert {name: entry["shape"] for name, entry in facts["arrays"].items()} == {
        "model/w": [2, 3],
        "model/b": [5],
        "optimizer/state/0/exp_avg": [2, 3],
    }
    entry = facts["arrays"]["model/w"]
    assert (entry["dtype"], entry["nbytes"]) == ("<f4", 24)
    assert entry["digest"] == xxhash.xxh3_128_hexdigest(np.ones((2, 3), np.float32))
    assert facts["tree"]["epoch"] == 3


def test_the_command_prints_what_programs_read(run, capsys):
    assert cli.main(["inspect", "--json", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    assert cli.main(["inspect", "--json", str(run / "absent")]) == 1
    assert capsys.readouterr().out == ""


def test_what_programs_are_told_moves_no_cursor(tmp_path, quick_sync):
    save(tmp_path / "c", {"\x1b[2J": np.ones(1)})
    assert inspect(tmp_path / "c", as_json=True).text.isascii()
    assert "\x1b" not in inspect(tmp_path / "c", as_json=True).text


def test_inspect_of_a_run_shows_its_newest_step(run):
    assert "step 2" in inspect(run).text


@pytest.mark.parametrize("command", [inspect, verify])
def test_what_is_no_checkpoint_is_told_with_a_failing_exit_code(tmp_path, command):
    text, exit_code = command(tmp_path / "nothing")
    assert exit_code == 1
    assert "No such file or directory" in text


def test_verify_of_a_sound_run_names_every_step(run):
    text, exit_code = verify(run)
    assert exit_code == 0
    assert [line[:4] for line in text.splitlines()] == ["ok: ", "ok: "]


def test_verify_of_a_damaged_step_fails_and_says_why(run):
    damage(run, 1)
    text, exit_code = verify(run)
    assert exit_code == 1
    assert text.startswith("DAMAGED: ")
    assert "data-00000.safetensors (tree['optimizer']['state'][0]['exp_avg'])" in text
    assert "ok: " in text


def test_diff_of_equal_checkpoints_says_so(run):
    assert diff(run / "step-000000000001", run) == ("no difference", 0)


def test_diff_of_what_cannot_be_read_has_its_own_exit_code(run, tmp_path):
    text, exit_code = diff(run, tmp_path / "nothing")
    assert exit_code == 2
    assert "nothing" in text


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ({"a": 1}, {"a": 2}, "tree['a']: 1 became 2"),
        ({"a": 1}, {"a": True}, "tree['a']: 1 became True"),
        ({"a": 1}, {"a": 1.0}, "tree['a']: 1 became 1.0"),
        ({"a": 1}, {}, "tree['a']: removed, it was 1"),
        ({}, {3: [np.ones(2)]}, "tree[3]: added, it is a list of 1"),
        ([1], (1,), "tree: [1] became (1,)"),
        ([1], [1, "x"], "tree[1]: added, it is 'x'"),
        ({"a": 1, 1: 1}, {"a": 2}, "tree['a']: 1 became 2\ntree[1]: removed, it was 1"),
        (np.ones(2), np.ones(3), "tree: float64 [2] 16 B became float64 [3] 24 B"),
        (np.ones(2), 1, "tree: float64 [2] 16 B became 1"),
        (np.array([1.0, 2]), np.array([1.0, 2.5]), "tree: 1 of 2 elements differ, by 0.5 at most"),
        (np.array([0.0]), np.array([-0.0]), "tree: 1 of 1 elements differ, by 0 at most"),
        (np.array([1.0]), np.array([np.nan]), "tree: 1 of 1 elements differ"),
        (np.array([1j]), np.array([1.0]) * 4j, "tree: 1 of 1 elements differ, by 3 at most"),
        (np.array(["ab"]), np.array(["ac"]), "tree: 1 of 1 elements differ"),
        (np.array([True]), np.array([False]), "tree: 1 of 1 elements differ, by 1 at most"),
        (
            np.array([1, 2], ml_dtypes.bfloat16),
            np.array([1, 3], ml_dtypes.bfloat16),
            "tree: 1 of 2 elements differ, by 1 at most",
        ),
        (Parameter("a"), Parameter("b"), "tree.data: 'a' became 'b'"),
        (
            Parameter(np.ones(2), name="a"),
            Parameter(np.zeros(2), False, "b"),
            "tree: name 'a' became 'b'\ntree: requires_grad True became False\n"
            "tree.data: 2 of 2 elements differ, by 1 at most",
        ),
        (
            Stateful({"lr": 1}),
            Adam({"lr": 2}),
            "tree: class 'Stateful' became 'Adam'\ntree['lr']: 1 became 2",
        ),
        (float("nan"), float("inf"), "tree: nan became inf"),
    ],
)
def test_diff_says_what_changed(tmp_path, quick_sync, before, after, line):
    save(tmp_path / "a", before)
    save(tmp_path / "b", after)
    assert diff(tmp_path / "a", tmp_path / "b") == (line, 1)
