import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from lucid_gpu.checkpoint import Checkpointer, CheckpointError, load
from lucid_gpu.checkpoint.signals import StopRequests

TERM = signal.SIGTERM


@pytest.fixture(autouse=True)
def _as_before(quick_sync):
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in usual.items():
        assert signal.getsignal(number) is handler
        signal.signal(number, handler)


def test_a_signal_is_noted_and_does_nothing_else(tmp_path):
    with Checkpointer(tmp_path, save_on_signal=[TERM, signal.SIGUSR1]) as checkpointer:
        assert checkpointer.interrupted_by is None
        signal.raise_signal(signal.SIGUSR1)
        assert checkpointer.interrupted_by is signal.SIGUSR1


def test_without_being_asked_no_signal_is_caught(tmp_path):
    before = signal.getsignal(TERM)
    with Checkpointer(tmp_path) as checkpointer:
        assert signal.getsignal(TERM) is before
        assert checkpointer.interrupted_by is None


def test_a_second_signal_takes_its_usual_effect(tmp_path):
    effects = []
    before = signal.signal(TERM, lambda *_: effects.append(1))
    try:
        with Checkpointer(tmp_path, save_on_signal=[TERM]):
            signal.raise_signal(TERM)
            assert effects == []
            signal.raise_signal(TERM)
            assert effects == [1]
    finally:
        signal.signal(TERM, before)


def test_a_signal_handler_of_the_program_that_came_later_is_left(tmp_path):
    before = signal.getsignal(TERM)
    checkpointer = Checkpointer(tmp_path, save_on_signal=[TERM])
    later = lambda *_: None  # noqa: E731
    signal.signal(TERM, later)
    checkpointer.close()
    assert signal.getsignal(TERM) is later
    signal.signal(TERM, before)


def test_a_signal_while_signals_get_their_effects_back_is_no_error():
    class Interrupted(dict):
        was_sent = False

        def popitem(self):
            if not self.was_sent:
                self.was_sent = True
                signal.raise_signal(TERM)
            return super().popitem()

    before = signal.getsignal(TERM)
    requests = StopRequests([TERM])
    requests._usual = Interrupted(requests._usual)
    requests.restore()
    assert requests.received is TERM
    assert signal.getsignal(TERM) is before


@pytest.mark.parametrize(
    ("numbers", "error"),
    [([TERM, signal.SIGKILL], ValueError), ([10**6], ValueError), (5, TypeError)],
)
def test_what_cannot_be_caught_is_refused_before_anything_else(tmp_path, numbers, error):
    with pytest.raises(error):
        Checkpointer(tmp_path / "run", save_on_signal=numbers)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_is_held_leaves_signals_alone(tmp_path):
    with Checkpointer(tmp_path), pytest.raises(CheckpointError, match="another Checkpointer"):
        Checkpointer(tmp_path, save_on_signal=[TERM])


def test_another_thread_is_told_that_it_cannot_catch_signals(tmp_path):
    errors = []

    def work():
        try:
            Checkpointer(tmp_path, save_on_signal=[TERM])
        except ValueError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert ["main thread" in error for error in errors] == [True]


TRAINING = """
import os, signal, sys
import numpy as np
from lucid_gpu.checkpoint import Checkpointer
w = np.zeros(1000)
with Checkpointer(sys.argv[1], save_on_signal=[signal.SIGTERM]) as checkpointer:
    if sys.argv[2] == "fork" and os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    if sys.argv[2] == "fork":
        print(os.WTERMSIG(os.wait()[1]), flush=True)
    step = 0
    while True:
        step += 1
        w += 1
        if checkpointer.interrupted_by:
            checkpointer.save(step, {"w": w, "step": step}, block=False)
            w *= 0
            break
        if step == 10:
            print("ready", flush=True)
sys.exit(128 + checkpointer.interrupted_by)
"""


def outcome(command, lines):
    """Return the exit code of a job that is sent a signal when it has said so much."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        try:
            assert [job.stdout.readline() for _ in lines] == lines
            os.kill(job.pid, TERM)
            return job.wait(60)
        finally:
            job.kill()


def test_a_job_that_is_preempted_saves_and_ends(tmp_path):
    command = [sys.executable, "-c", TRAINING, str(tmp_path), "alone"]
    assert outcome(command, ["ready\n"]) == 143
    tree = load(tmp_path)
    assert np.unique(tree["w"]).tolist() == [tree["step"]]


def test_a_forked_child_has_the_usual_effect_of_the_signal(tmp_path):
    command = [sys.executable, "-c", TRAINING, str(tmp_path), "fork"]
    assert outcome(command, [f"{int(TERM)}\n", "ready\n"]) == 143
