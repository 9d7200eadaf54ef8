"""A save that is killed, or refused something, at any of its system calls."""

import shutil

import pytest

from lucid_gpu.checkpoint import Checkpointer
from tests.checkpoint import crash, powercut, trees

MUST_SUCCEED = {"write", "fsync", "mkdirat", "renameat"}


@pytest.fixture(scope="module")
def prepared(memory_path):
    directory = memory_path / "prepared"
    crash.prepare(directory)
    return directory


@pytest.fixture(scope="module")
def places(prepared, memory_path):
    """Every system call of one save, as strace counts them."""
    if crash.STRACE is None:
        pytest.skip("strace is not installed (apt-get install strace)")
    shutil.copytree(prepared, memory_path / "recorded" / "run")
    try:
        said, _ = crash.run(memory_path / "recorded" / "run", memory_path / "recorded.log")
    except PermissionError as error:
        pytest.skip(f"strace may not attach to a process here: {error}")
    assert said == "saved"
    return crash.places(memory_path / "recorded.log")


@pytest.fixture
def save_with(prepared, memory_path, quick_sync):
    """Save step 3 in a child with an injection, check what is left, and return what it said."""

    def run(injection):
        directory = memory_path / "injected" / "run"
        shutil.copytree(prepared, directory)
        said, exit_code = crash.run(directory, memory_path / "log", "-e", f"inject={injection}")
        check(directory, acknowledged=3 if said.startswith("saved") else 2)
        shutil.rmtree(directory)
        return said, exit_code

    return run


def check(directory, acknowledged):
    """Load what is left, to the bit, and save the next step."""
    with Checkpointer(directory, keep=2) as checkpointer:
        for step in checkpointer.steps():
            assert trees.same(checkpointer.restore(step), crash.tree(step))
        assert checkpointer.restore()["step"] in range(acknowledged, 4)
        checkpointer.save(4, crash.tree(4))
        assert trees.same(checkpointer.restore(), crash.tree(4))
    assert not list(directory.glob(".tmp-*"))


def test_the_save_under_test_makes_the_calls_that_matter(places):
    names = [name for name, _ in places]
    assert {*MUST_SUCCEED, "openat", "flock", "unlinkat", "close"} <= set(names)
    # Of the parents up to the file system, before sweeping, and in the protocol itself.
    assert names.count("fsync") == 3 + 1 + 5


def test_the_recorder_of_power_cuts_sees_every_change_that_strace_sees(
    places, prepared, memory_path
):
    shutil.copytree(prepared, memory_path / "watched" / "run")
    recorder = powercut.Recorder(memory_path / "watched")
    with (
        recorder.recording(),
        Checkpointer(memory_path / "watched" / "run", keep=2) as checkpointer,
    ):
        checkpointer.save(3, crash.tree(3))
    assert [op.call for op in recorder.ops] == crash.changes(memory_path / "recorded.log")


def test_a_kill_at_any_system_call_loses_nothing(places, save_with):
    for name, count in places:
        _, exit_code = save_with(f"{name}:signal=KILL:when={count}")
        assert exit_code == -9, f"the child did not die at {name} number {count}"


@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_an_error_at_any_system_call_loses_nothing_and_is_reported(places, save_with, error):
    for name, count in places:
        said, exit_code = save_with(f"{name}:error={error}:when={count}")
        assert exit_code == 0
        assert said.startswith(("saved", "refused")), f"{name} number {count}: {said}"
        assert said != "saved" or name not in MUST_SUCCEED, f"{name} number {count} went unnoticed"
