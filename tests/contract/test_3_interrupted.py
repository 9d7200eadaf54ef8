"""Rows 18a and 18b of docs/contract.md: steps that are interrupted, and steps inside steps."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu.checkpoint import save
from lucid_gpu.optim import SGD, Adam
from tests.contract.support import everything, trained, values

PACKAGE = str(Path(lucid_gpu.__file__).parent)
HOOKED = str(Path(PACKAGE, "optim", "core", "hooked.py"))

TORN = "a step of this Adam was interrupted"


def some(device, count=3):
    """Parameters of several sizes with gradients."""
    rng = np.random.default_rng(5)
    return [
        trained(rng.normal(size=n), rng.normal(size=n), device, name=f"p{n}")
        for n in range(1, count + 1)
    ]


class Injected(KeyboardInterrupt):
    """What Ctrl-C raises, at a line of the package."""


def step_interrupted_at(optimizer, line):
    """Step, and raise at the given line that the package runs; say whether it came to that."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        # A statement that lets go of something cannot be torn by a signal, only by a tracer.
        if event == "line" and frame.f_code.co_filename != HOOKED:
            seen += 1
            if seen == line:
                raise Injected
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        # Restores what a tracer, and no signal, keeps a with statement from restoring.
        with np.errstate():
            optimizer.step()
    except Injected:
        return True
    finally:
        sys.settrace(before)
    return False


def pictures(device, steps):
    """Return what an optimizer holds after each of so many steps, and the saved states."""
    optimizer = Adam(some(device), lr=0.1)
    found = [(everything(optimizer), optimizer.state_dict())]
    for _ in range(steps):
        optimizer.step()
        found.append((everything(optimizer), optimizer.state_dict()))
    return found


def assert_refused_until_restored(optimizer, saved):
    for use in (optimizer.state_dict, optimizer.step, optimizer.explain):
        with pytest.raises(RuntimeError, match=TORN):
            use()
    for duplicate in (pickle.dumps, copy.deepcopy):
        with pytest.raises(RuntimeError, match=TORN):
            duplicate(optimizer)
    optimizer.load_state_dict(saved)
    optimizer.step()


@pytest.mark.parametrize("steps", [0, 1])
def test_wherever_a_step_is_interrupted_it_is_whole_or_refused(device, steps):
    """Row 18a of docs/contract.md."""
    expected = pictures(device, steps + 2)
    outcomes = set()
    line = 0
    while True:
        line += 1 if steps else 5  # a first step runs thousands of lines
        optimizer = Adam(some(device), lr=0.1)
        for _ in range(steps):
            optimizer.step()
        if not step_interrupted_at(optimizer, line):
            break
        if optimizer._is_torn:
            assert_refused_until_restored(optimizer, expected[steps][1])
            outcomes.add("refused")
            continue
        done = [picture for picture, _ in expected].index(everything(optimizer))
        assert done in (steps, steps + 1), line
        optimizer.step()
        assert everything(optimizer) == expected[done + 1][0], line
        outcomes.add("as before")
    assert outcomes == {"refused", "as before"}


def test_a_checkpoint_of_an_interrupted_step_is_refused(tmp_path):
    """Row 18a of docs/contract.md."""
    optimizer = Adam(some("cpu"))
    optimizer._is_torn = True
    with pytest.raises(RuntimeError, match=TORN):
        save(tmp_path / "run", {"optimizer": optimizer})
    assert not (tmp_path / "run").exists()


def test_a_launch_that_fails_is_noticed(emulated, monkeypatch):
    """Row 18a of docs/contract.md."""
    optimizer = Adam(some("cuda:0"))
    optimizer.step()
    launch = optimizer._prepared.parts[0].executor._fused

    def fail(*_, **__):
        raise MemoryError("no launch")

    monkeypatch.setattr(launch, "_kernel", fail)
    with pytest.raises(MemoryError):
        optimizer.step()
    with pytest.raises(RuntimeError, match=TORN):
        optimizer.state_dict()


def test_a_slot_that_cannot_be_written_is_refused_before_anything_changed():
    """Row 18a of docs/contract.md."""
    params = some("cpu")
    optimizer = SGD(params, lr=0.1, momentum=0.9)
    optimizer.step()
    frozen = optimizer.state[params[2]]["momentum_buffer"].copy()
    frozen.flags.writeable = False
    optimizer.state[params[2]]["momentum_buffer"] = frozen
    before = everything(optimizer)
    with pytest.raises(ValueError, match="slot 'momentum_buffer' of parameter 'p3' is read-only"):
        optimizer.step()
    assert everything(optimizer) == before


AT_EXIT = """
import atexit
import numpy as np
from lucid_gpu import Parameter
from lucid_gpu.optim import SGD
w = Parameter(np.ones(1 << 18, np.float32))
w.grad = np.ones(1 << 18, np.float32)
optimizer = SGD([w], lr=0.5)
def last():
    try:
        optimizer.step()
    except RuntimeError:
        print(optimizer.state[w].get("step", 0) if w in optimizer.state else 0, w.data.mean())
    else:
        print(optimizer.state[w]["step"], w.data.mean())
{first}
atexit.register(last)
"""


@pytest.mark.parametrize("first", ["", "optimizer.step()"])
def test_a_step_at_the_exit_of_the_interpreter_steps(first):
    """Row 18a of docs/contract.md."""
    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT.replace("{first}", first)],
        env={
            **os.environ,
            "LUCID_GPU_NUM_THREADS": "2",
            "PYTHONPATH": str(Path(PACKAGE).parent),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == ("2 0.0\n" if first else "1 0.5\n")
    assert done.stderr == ""


def test_a_second_thread_inside_a_step_is_refused():
    """Row 18b of docs/contract.md."""
    (param,) = some("cpu", 1)
    optimizer = SGD([param], lr=0.5)
    inside, done = threading.Event(), threading.Event()
    errors = []

    def closure():
        inside.set()
        assert done.wait(30)

    thread = threading.Thread(target=optimizer.step, args=(closure,))
    thread.start()
    assert inside.wait(30)
    try:
        optimizer.step()
    except RuntimeError as error:
        errors.append(str(error))
    finally:
        done.set()
        thread.join()
    assert len(errors) == 1
    assert "another thread is inside step()" in errors[0]
    assert optimizer.state[param]["step"] == 1


def test_hooks_run_for_every_step_of_many_threads():
    """Row 18b of docs/contract.md."""
    optimizer = SGD(some("cpu"), lr=1e-3)
    counts = {"pre": 0, "post": 0, "done": 0, "refused": 0}
    lock = threading.Lock()

    def count(what):
        with lock:
            counts[what] += 1

    optimizer.register_step_pre_hook(lambda *_: count("pre"))
    optimizer.register_step_post_hook(lambda *_: count("post"))

    def work():
        for _ in range(50):
            try:
                optimizer.step()
            except RuntimeError:
                count("refused")
            else:
                count("done")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["pre"] == counts["post"] == counts["done"]
    assert counts["done"] + counts["refused"] == 200
    assert optimizer.state[optimizer.param_groups[0]["params"][0]]["step"] == counts["done"]


@pytest.mark.parametrize(
    "register", ["closure", "register_step_pre_hook", "register_step_post_hook"]
)
def test_a_step_inside_a_step_of_the_same_optimizer_is_refused(register):
    """Row 18b of docs/contract.md."""
    (param,) = some("cpu", 1)
    optimizer = SGD([param], lr=0.5)
    steps = []

    def again(*_):
        steps.append(1)
        optimizer.step()

    if register != "closure":
        getattr(optimizer, register)(again)
    with pytest.raises(RuntimeError, match="called by a closure or hook of the step"):
        optimizer.step(*([again] if register == "closure" else []))
    assert len(steps) == 1


def test_a_step_of_a_subclass_that_calls_its_base_is_one_step():
    """Row 18b of docs/contract.md."""

    class Logged(SGD):
        def step(self, closure=None):
            return super().step(closure)

    (param,) = some("cpu", 1)
    optimizer = Logged([param], lr=0.5)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert (len(calls), optimizer.state[param]["step"]) == (1, 1)


def test_different_optimizers_step_in_different_threads():
    """Row 18b of docs/contract.md."""
    pairs = [some("cpu", 1) for _ in range(4)]
    optimizers = [Adam(params, lr=0.1) for params in pairs]
    threads = [
        threading.Thread(target=lambda own=own: [own.step() for _ in range(50)])
        for own in optimizers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tuple(values(params[0])) for params in pairs}) == 1
    assert all(own.state[ps[0]]["step"] == 50 for own, ps in zip(optimizers, pairs, strict=True))


def test_a_step_can_be_taken_after_one_that_could_not_let_go():
    """Row 18b of docs/contract.md: an interrupt may come while a step lets go of its optimizer."""
    (param,) = some("cpu", 1)
    optimizer = SGD([param], lr=0.5)
    optimizer._stepping = (threading.get_ident(),)
    optimizer.step()
    optimizer.step()
    assert optimizer.state[param]["step"] == 2
