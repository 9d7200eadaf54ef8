"""A Checkpointer shared by threads, inherited by forks, and read beside its writer."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from lucid_gpu.checkpoint import (
    Checkpointer,
    CheckpointError,
    background,
    durable,
    latest,
    load,
    report,
)
from tests.checkpoint.stateful import Stateful

LIMIT = 60
"""Seconds after which a program is taken to hang."""


@pytest.fixture
def fast(monkeypatch, quick_sync):
    monkeypatch.setattr(background, "REST", 0)


@pytest.mark.parametrize("block", [True, False], ids=["blocking", "background"])
def test_threads_that_share_a_checkpointer_save_what_each_gave(tmp_path, fast, block):
    numbers = iter(range(1, 10**6))
    saved, errors = set(), []

    def work(checkpointer):
        for _ in range(15):
            step = next(numbers)
            try:
                checkpointer.save(step, {"w": np.full(5000, step), "step": step}, block=block)
                saved.add(step)
            except CheckpointError as error:
                errors.append(str(error))
            checkpointer.wait()

    with Checkpointer(tmp_path, keep=10**6) as checkpointer:
        threads = [threading.Thread(target=work, args=(checkpointer,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        checkpointer.wait()
        assert set(checkpointer.steps()) == saved
        for step in checkpointer.steps():
            tree = checkpointer.restore(step)
            assert tree["step"] == step
            assert set(tree["w"].tolist()) == {step}
    # A thread may be overtaken by one with a higher step.
    assert all("would not be the newest" in error for error in errors)


def test_a_save_within_a_save_is_refused(tmp_path, fast):
    class Nested(Stateful):
        def state_dict(self):
            checkpointer.save(2, {"inner": 1})
            return self.state

    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(CheckpointError, match="save was called from within another method"):
            checkpointer.save(1, Nested({}))
        checkpointer.save(1, {"outer": 1})
        assert checkpointer.restore() == {"outer": 1}


PROGRAM = """
import os, signal, sys, threading, time
import numpy as np
from lucid_gpu.checkpoint import Checkpointer, CheckpointError, durable

run = sys.argv[1]
gate, begun = threading.Event(), threading.Event()
write_all = durable.write_all
def gated(descriptor, data):
    begun.set()
    gate.wait(60)
    write_all(descriptor, data)

def in_child(action):
    pid = os.fork()
    if pid == 0:
        action()
        sys.stdout.flush()
        sys.exit(0)
    return pid

def refused(action):
    try:
        action()
    except CheckpointError as error:
        print("refused:", error)

checkpointer = Checkpointer(run + "/run")
"""


def outcome(tmp_path, program):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    assert done.stderr == ""
    return done.stdout


ENDING = """
import concurrent.futures.thread as pools
from lucid_gpu.checkpoint import reader
reader._BATCH_BYTES = 1
os.cpu_count = lambda: 2
def late(descriptor, data):
    while not pools._shutdown:
        time.sleep(0.001)
    write_all(descriptor, data)
durable.write_all = late
checkpointer.save(5, {}, block=False)
"""


def test_a_save_that_outlives_the_program_removes_what_it_has_to_verify(tmp_path, fast):
    with Checkpointer(tmp_path / "run") as checkpointer:
        for step in range(1, 5):
            checkpointer.save(step, {"v": np.ones(9), "w": np.zeros(9)})
    assert outcome(tmp_path, ENDING) == ""
    assert latest(tmp_path / "run").name == "step-000000000005"
    assert len(list((tmp_path / "run").iterdir())) == 3


IN_FLIGHT = """
durable.write_all = gated
checkpointer.save(1, np.ones(1000), block=False)
begun.wait(60)
pid = in_child(lambda: ({}))
print("child", os.waitpid(pid, 0)[1])
gate.set()
checkpointer.close()
"""


@pytest.mark.parametrize(
    "action", ["None", "checkpointer.close()", "checkpointer.wait()", "checkpointer.steps()"]
)
def test_the_child_of_a_process_with_a_save_in_flight_does_not_wait_for_it(tmp_path, action):
    assert outcome(tmp_path, IN_FLIGHT.format(action)) == "child 0\n"
    assert Checkpointer(tmp_path / "run").restore().tolist() == [1] * 1000


@pytest.mark.parametrize("first", ["", "checkpointer.save(1, np.ones(3), block=False)\n"])
def test_a_child_cannot_save_with_the_checkpointer_of_its_parent(tmp_path, first):
    program = first + (
        "checkpointer.wait()\n"
        "pid = in_child(lambda: refused(lambda: checkpointer.save(2, {}, block=False)))\n"
        "print('child', os.waitpid(pid, 0)[1])\n"
        "checkpointer.save(3, {})\n"
    )
    said = outcome(tmp_path, program)
    assert "belongs to the process that forked this one: open another" in said
    assert said.endswith("child 0\n")


def test_a_child_saves_in_the_background_with_a_checkpointer_of_its_own(tmp_path):
    program = """
checkpointer.save(1, np.ones(3), block=False)
checkpointer.wait()
def own():
    with Checkpointer(run + "/own") as mine:
        mine.save(1, {"child": 1}, block=False)
        print(mine.restore())
pid = in_child(own)
print("child", os.waitpid(pid, 0)[1])
"""
    assert outcome(tmp_path, program) == "{'child': 1}\nchild 0\n"


def test_the_close_of_a_child_leaves_the_lock_to_the_parent(tmp_path):
    program = """
os.waitpid(in_child(checkpointer.close), 0)
refused(lambda: Checkpointer(run + "/run"))
"""
    assert "another Checkpointer is writing here" in outcome(tmp_path, program)


HELD_BY_A_CHILD = """
ready, done = os.pipe(), os.pipe()
def parent():
    pid = in_child(lambda: (os.write(ready[1], b"x"), os.read(done[0], 1)))
    os.read(ready[0], 1)
    os._exit(0)
if os.fork() == 0:
    checkpointer = Checkpointer(run + "/other")
    {}
    parent()
os.wait()
other = Checkpointer(run + "/other")
print(os.listdir(run + "/other"))
os.write(done[1], b"x")
"""

BETWEEN_A_SAVE = """
    durable.write_all = gated
    checkpointer.save(1, np.ones(1000), block=False)
    begun.wait(60)
"""


@pytest.mark.parametrize("before", ["", BETWEEN_A_SAVE.strip()], ids=["idle", "saving"])
def test_a_living_child_keeps_no_lock_of_a_dead_parent(tmp_path, before):
    assert outcome(tmp_path, HELD_BY_A_CHILD.format(before)) == "[]\n"


def test_an_interrupted_wait_does_not_forget_its_save(tmp_path, monkeypatch, quick_sync):
    gate = threading.Event()
    write_all = durable.write_all

    def failing(descriptor, data):
        gate.wait(LIMIT)
        raise OSError(5, "Input/output error")

    def interrupted(future, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(durable, "write_all", failing)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, np.ones(3), block=False)
    for call in (checkpointer.wait, checkpointer.close):
        with monkeypatch.context() as patch:
            patch.setattr(background.Future, "result", interrupted)
            with pytest.raises(KeyboardInterrupt):
                call()
    with pytest.raises(CheckpointError, match="another Checkpointer is writing"):
        Checkpointer(tmp_path)
    gate.set()
    with pytest.raises(CheckpointError, match="was not saved: Input/output error"):
        checkpointer.wait()
    monkeypatch.setattr(durable, "write_all", write_all)
    checkpointer.save(1, {})
    checkpointer.close()


@pytest.fixture
def removing(monkeypatch):
    """Have a writer replace step 1 by step 2 just as a reader turns to it."""

    def install(run, reader_method):
        real = getattr(report.Reader, reader_method)
        turns = []

        def overtaken(reader, *arguments):
            if not turns:
                turns.append(1)
                with Checkpointer(run, keep=1) as checkpointer:
                    checkpointer.save(2, np.full(3, 2))
            return real(reader, *arguments)

        monkeypatch.setattr(report.Reader, reader_method, overtaken)

    return install


@pytest.mark.parametrize("method", ["__init__", "_read_manifest", "_check_headers", "verify"])
def test_verify_of_a_run_skips_steps_that_are_removed_meanwhile(
    tmp_path, quick_sync, removing, method
):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, np.full(3, 1))
    removing(tmp_path, method)
    text, exit_code = report.verify(tmp_path)
    assert exit_code == 0
    assert [line[:4] for line in text.splitlines()] == ["ok: "]
    assert "step 2" in text


@pytest.mark.parametrize("method", ["__init__", "_read_manifest", "_check_headers"])
def test_inspect_of_a_run_turns_to_the_step_that_replaced_the_newest(
    tmp_path, quick_sync, removing, method
):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, np.full(3, 1))
    removing(tmp_path, method)
    text, exit_code = report.inspect(tmp_path)
    assert (exit_code, "step 2" in text) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000002"]


WRITER = """
import sys
import numpy as np
from lucid_gpu.checkpoint import Checkpointer
with Checkpointer(sys.argv[1], keep=1) as checkpointer:
    for step in range(1, 201):
        checkpointer.save(step, {"w": np.full(2000, step), "step": step})
"""


def test_a_reader_beside_a_writer_always_loads_a_whole_step_and_never_an_older_one(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, {"w": np.full(2000, 0), "step": 0})
    seen = [0]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        while writer.poll() is None:
            tree = load(tmp_path)
            assert set(tree["w"].tolist()) == {tree["step"]}
            seen.append(tree["step"])
            assert latest(tmp_path).name >= f"step-{tree['step']:012d}"
            assert report.verify(tmp_path).exit_code == 0
    assert writer.returncode == 0
    assert seen == sorted(seen)
    assert load(tmp_path)["step"] == 200


@pytest.mark.parametrize("method", ["__init__", "_read_manifest", "_check_headers", "read"])
def test_a_step_that_is_replaced_while_it_is_loaded_gives_way_to_the_new_one(
    tmp_path, quick_sync, removing, method
):
    with Checkpointer(tmp_path, keep=1) as checkpointer:
        checkpointer.save(1, np.full(3, 1))
    removing(tmp_path, method)
    assert load(tmp_path).tolist() == [2, 2, 2]
