"""The power fails after any call of a save, and what was not synced may be lost."""

import ast
import inspect
import itertools
import shutil
import types

import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, durable
from tests.checkpoint import crash, powercut, trees


def first_save(base):
    """Save into directories that do not exist yet."""
    recorder = powercut.Recorder(base)
    with recorder.recording(), Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
        checkpointer.save(3, crash.tree(3))
        recorder.acknowledge(3)
    return recorder


def third_save(base):
    """Save the third step beside a leftover, and remove the first."""
    crash.prepare(base / "runs" / "run")
    recorder = powercut.Recorder(base)
    recorder.acknowledge(2)
    with recorder.recording(), Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
        checkpointer.save(3, crash.tree(3))
        recorder.acknowledge(3)
    return recorder


def repeated_save(base):
    """Save the third step again after the sync of its name has failed."""
    crash.prepare(base / "runs" / "run")
    recorder = powercut.Recorder(base, fail_in="runs/run", fail_sync=1)
    recorder.acknowledge(2)
    with recorder.recording(), Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
        with pytest.raises(CheckpointError, match="Input/output error"):
            checkpointer.save(3, crash.tree(3))
        checkpointer.save(3, crash.tree(3))
        recorder.acknowledge(3)
    return recorder


SCENARIOS = [first_save, third_save, repeated_save]


@pytest.fixture
def survive(memory_path, quick_sync):
    """Record a scenario, and load every disk that a power cut during it may leave."""
    numbers = itertools.count()

    def run(scenario):
        base = memory_path / "base"
        base.mkdir()
        try:
            recorder = scenario(base)
        finally:
            shutil.rmtree(base)
        states = 0
        for acknowledged, state in recorder.states():
            disk = memory_path / f"disk-{next(numbers)}"
            powercut.materialize(state, disk)
            try:
                check(disk / "runs" / "run", acknowledged)
            finally:
                shutil.rmtree(disk)
            states += 1
        return states

    return run


def check(directory, acknowledged):
    """Every step that is seen must be whole, the newest acknowledged, and saving must go on."""
    with Checkpointer(directory, keep=2) as checkpointer:
        steps = checkpointer.steps()
        for step in steps:
            assert trees.same(checkpointer.restore(step), crash.tree(step))
        assert max(steps, default=0) >= acknowledged
        checkpointer.save(4, crash.tree(4))
        assert trees.same(checkpointer.restore(), crash.tree(4))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_after_any_call_loses_nothing(survive, scenario):
    assert survive(scenario) > 50


def calls_of_the_protocol():
    tree = ast.parse(inspect.getsource(durable))
    return [
        (node.lineno, node.func.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("os.fsync", "os.rename", "os.replace", "os.fdatasync")
    ]


class Without(ast.NodeTransformer):
    def __init__(self, line):
        self.line = line

    def visit_Call(self, node):
        removed = node.lineno == self.line and ast.unparse(node.func).startswith("os.")
        return ast.Constant(None) if removed else self.generic_visit(node)


def protocol_without(line):
    """Return a copy of the protocol in which the system call of one line is not made."""
    tree = Without(line).visit(ast.parse(inspect.getsource(durable)))
    copy = types.ModuleType("mutant")
    exec(compile(ast.fix_missing_locations(tree), durable.__file__, "exec"), vars(copy))
    return copy


def install(protocol, monkeypatch):
    for name in ("make_directories", "publish", "new_file", "retire"):
        monkeypatch.setattr(durable, name, getattr(protocol, name))


def test_a_copy_of_the_protocol_with_nothing_removed_loses_nothing(survive, monkeypatch):
    install(protocol_without(line=None), monkeypatch)
    assert survive(third_save) > 50


@pytest.mark.parametrize(("line", "call"), calls_of_the_protocol())
def test_without_any_one_sync_or_rename_a_power_cut_loses_something(
    survive, monkeypatch, line, call
):
    install(protocol_without(line), monkeypatch)
    lost = []
    for scenario in SCENARIOS:
        try:
            survive(scenario)
        except (AssertionError, CheckpointError, pytest.fail.Exception) as error:
            lost.append(error)
    assert lost, f"line {line} ({call}) can be removed and nobody notices"


def test_the_protocol_syncs_and_renames():
    calls = [call for _, call in calls_of_the_protocol()]
    assert (calls.count("fsync"), calls.count("rename")) == (5, 2)
