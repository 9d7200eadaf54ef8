"""The power fails after any call of a save, and what was not synced may be lost."""

import ast
import inspect
import itertools
import shutil
import types

import pytest
import safetensors.numpy

from lucid_gpu.checkpoint import (
    Checkpointer,
    CheckpointError,
    durable,
    export_safetensors,
    save,
)
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
    recorder = powercut.Recorder(base, fail_after=r"step-0*3")
    recorder.acknowledge(2)
    with recorder.recording(), Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
        with pytest.raises(CheckpointError, match="Input/output error"):
            checkpointer.save(3, crash.tree(3))
        checkpointer.save(3, crash.tree(3))
        recorder.acknowledge(3)
    return recorder


def save_into_a_directory_of_the_user(base):
    """Save into directories that somebody made and did not sync."""
    recorder = powercut.Recorder(base)
    with recorder.recording():
        (base / "runs" / "run").mkdir(parents=True)
        with Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
            checkpointer.save(3, crash.tree(3))
            recorder.acknowledge(3)
    return recorder


def save_after_a_killed_one(base):
    """Save into directories that a killed program has made."""
    recorder = powercut.Recorder(base, fail_after="run", kill=True)
    with recorder.recording():
        with pytest.raises(powercut.Killed):
            Checkpointer(base / "runs" / "run")
        recorder.revive()
        with Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
            checkpointer.save(3, crash.tree(3))
            recorder.acknowledge(3)
    return recorder


def save_after_a_killed_removal(base):
    """Save the fourth step after a kill between the removal of the first and its sync."""
    crash.prepare(base / "runs" / "run")
    recorder = powercut.Recorder(base, fail_after=r"\.tmp-step-0*1-.*", kill=True)
    recorder.acknowledge(2)
    with recorder.recording():
        with (
            pytest.raises(powercut.Killed),
            Checkpointer(base / "runs" / "run", keep=2) as checkpointer,
        ):
            checkpointer.save(3, crash.tree(3))
        recorder.revive()
        recorder.acknowledge(3)
        with Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
            checkpointer.save(4, crash.tree(4))
            recorder.acknowledge(4)
    return recorder


def save_after_a_failed_removal(base):
    """Save the fourth step after the sync of the removal of the first has failed."""
    crash.prepare(base / "runs" / "run")
    recorder = powercut.Recorder(base, fail_after=r"\.tmp-step-0*1-.*")
    recorder.acknowledge(2)
    with recorder.recording(), Checkpointer(base / "runs" / "run", keep=2) as checkpointer:
        with pytest.warns(UserWarning, match="older ones could not be removed: Input/output"):
            checkpointer.save(3, crash.tree(3))
        recorder.acknowledge(3)
        checkpointer.save(4, crash.tree(4))
        recorder.acknowledge(4)
    return recorder


def exported_file(base):
    """Export twice over one name."""
    (base / "runs" / "run").mkdir(parents=True)
    for step in (1, 2):
        save(base / f"{step}", crash.tree(step))
    (base / "runs" / "model").mkdir()
    file = base / "runs" / "model" / "w.safetensors"
    export_safetensors(base / "1", "w", file)
    recorder = powercut.Recorder(base)
    recorder.acknowledge(1)
    with recorder.recording():
        export_safetensors(base / "2", "w", file)
        recorder.acknowledge(2)
    return recorder


SCENARIOS = [
    exported_file,
    first_save,
    third_save,
    repeated_save,
    save_into_a_directory_of_the_user,
    save_after_a_killed_one,
    save_after_a_killed_removal,
    save_after_a_failed_removal,
]


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
    exported = directory.parent / "model" / "w.safetensors"
    if exported.exists():
        (loaded,) = safetensors.numpy.load_file(exported).values()
        assert any(trees.same(loaded, crash.tree(step)["w"]) for step in range(acknowledged, 3))
        return
    with Checkpointer(directory, keep=2) as checkpointer:
        steps = checkpointer.steps()
        for step in steps:
            assert trees.same(checkpointer.restore(step), crash.tree(step))
        assert max(steps, default=0) >= acknowledged
        checkpointer.save(9, crash.tree(9))
        assert trees.same(checkpointer.restore(), crash.tree(9))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_power_cut_after_any_call_loses_nothing(survive, scenario):
    assert survive(scenario) > (40 if scenario is not exported_file else 10)


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
    for name in ("make_directories", "publish", "new_file", "retire", "sweep", "publish_file"):
        monkeypatch.setattr(durable, name, getattr(protocol, name))


def test_a_copy_of_the_protocol_with_nothing_removed_loses_nothing(survive, monkeypatch):
    install(protocol_without(line=None), monkeypatch)
    assert survive(third_save) > 50


@pytest.mark.parametrize(("line", "call"), calls_of_the_protocol())
def test_without_any_one_sync_or_rename_a_power_cut_loses_something(
    survive, monkeypatch, line, call
):
    install(protocol_without(line), monkeypatch)

    def loses(scenario):
        try:
            survive(scenario)
        except (
            AssertionError,
            CheckpointError,
            UserWarning,
            pytest.fail.Exception,
            safetensors.SafetensorError,
        ):
            return True
        return False

    assert any(map(loses, SCENARIOS)), f"line {line} ({call}) can be removed and nobody notices"


def test_the_protocol_syncs_and_renames():
    calls = [call for _, call in calls_of_the_protocol()]
    assert (calls.count("fsync"), calls.count("rename")) == (7, 4)
