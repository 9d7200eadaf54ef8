"""Threads of the CPU: how many there are, and that a fork and a wrong number do no harm."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lucid_gpu import Parameter
from lucid_gpu.execution.threads import thread_count
from lucid_gpu.optim import Adam
from tests.execution.compilers import run


@pytest.mark.parametrize("text", ["", "0", "-1", "two", "1.5", " "])
def test_a_number_of_threads_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", text)
    with pytest.raises(ValueError, match="LUCID_GPU_NUM_THREADS must be a whole number >= 1"):
        thread_count()


def test_the_number_of_threads_is_read_from_the_environment(monkeypatch):
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "5")
    assert thread_count() == 5


def test_the_cores_of_the_process_step_by_default(monkeypatch):
    monkeypatch.delenv("LUCID_GPU_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    assert thread_count() == 3


FORK = """
import os, warnings
import numpy as np
from lucid_gpu import Parameter
from lucid_gpu.optim import Adam
warnings.simplefilter("ignore")
w = Parameter(np.ones(1_000_000, np.float32))
w.grad = np.ones(1_000_000, np.float32)
optimizer = Adam([w])
optimizer.step()
child = os.fork()
optimizer.step()
if not child:
    os._exit(0 if np.unique(w.data).size == 1 else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("code", ["numpy", "compiled"])
def test_a_forked_process_steps_on(code):
    done = run(FORK, LUCID_GPU_NUM_THREADS=2, LUCID_GPU_CPU=code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("code", ["numpy", "compiled"])
def test_a_wrong_number_of_threads_is_refused_before_anything_steps(monkeypatch, code):
    monkeypatch.setenv("LUCID_GPU_CPU", code)
    param = Parameter(np.ones(1 << 18, np.float32))
    param.grad = np.ones_like(param.data)
    optimizer = Adam([param])
    optimizer.step()
    before = param.data.copy()
    monkeypatch.setenv("LUCID_GPU_NUM_THREADS", "many")
    with pytest.raises(ValueError, match="LUCID_GPU_NUM_THREADS must be a whole number"):
        optimizer.step()
    assert optimizer.state[param]["step"] == 1
    assert np.array_equal(param.data, before)
