"""Rows 22, 24 and 25 of docs/contract.md: after any error the optimizer is as it was."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

import lucid_gpu
from lucid_gpu import Parameter, optim
from lucid_gpu.device import transfer
from lucid_gpu.device.arrays import device_of
from tests.contract.support import Foreign, array, everything, picture, trained, unchanged
from tests.contract.textual import Client

PACKAGE = Path(lucid_gpu.__file__).parent
CORE = ("state_dict", "matching", "groups", "clients", "tree", "checks", "pytorch")
READING = {PACKAGE / "device" / f"{name}.py" for name in ("gpu", "arrays", "transfer")} | {
    PACKAGE / "optim" / name for name in ("adam.py", *(f"core/{name}.py" for name in CORE))
}
"""Where a restore reads, checks and copies; what comes after only exchanges references."""
assert all(path.is_file() for path in READING)


class InjectedError(Exception):
    """A failure that no code expects."""


class failing_at:  # noqa: N801 - reads as a phrase
    """Make the n-th call of a function of ``READING`` fail, and say whether there was one."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.hit = ""

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception):
        sys.settrace(self._before)

    def _trace(self, frame, event, _):
        code = frame.f_code
        # Python swallows what a generator raises while it is closed.
        is_generator = code.co_flags & inspect.CO_GENERATOR
        if event == "call" and Path(code.co_filename) in READING and not is_generator:
            self.left -= 1
            if self.left == 0:
                self.hit = code.co_name
                raise InjectedError(self.hit)


class WithClients(optim.Adam):
    """An Adam that asks models for advice, as far as its options go."""

    def __init__(self, params, forward=None, backward=None, **options):
        super().__init__(params, **options)
        for group in self.param_groups:
            group.update(forward=forward, backward=backward, history=[1, ("two", {"three": [3]})])


def make(device, forward, backward, steps):
    groups = [
        {"params": [trained([1.0, 2.0], [0.5, 1.0], device, name="a")], "lr": 0.1 * (1 + steps)},
        {"params": [trained([3.0], [1.0], device, name="b"), Parameter([4.0], name="c")]},
    ]
    optimizer = WithClients(groups, forward, backward)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def test_a_failure_of_any_function_that_loading_calls_changes_nothing(device):
    """Row 22 of docs/contract.md."""
    sources = Client("one"), Client("two")
    sources[0].usage["calls"], sources[1].usage["calls"] = 7, 8
    saved = make(device, *sources, steps=3).state_dict()
    own = Client("mine"), Client("mine too")
    optimizer = make(device, *own, steps=1)
    clients = {"forward": own[0], "backward": own[1]}
    before, used = everything(optimizer), [dict(client.usage) for client in own]
    hits, number = set(), 0
    while True:
        number += 1
        with failing_at(number) as injection:
            try:
                optimizer.load_state_dict(saved, model_clients=clients)
            except InjectedError:
                pass
            else:
                break
        hits.add(injection.hit)
        assert everything(optimizer) == before, injection.hit
        assert [client.usage for client in own] == used, injection.hit
    assert injection.left > 0
    assert {
        "restore",
        "_check_form",
        "match_groups",
        "_prepare",
        "copy_tree",
        "check_options",
        "_copy_slots",
        "copy",
        "settle",
        "install",
    } <= hits
    assert everything(optimizer) != before
    assert [client.usage["calls"] for client in own] == [7, 8]


def test_a_failure_while_a_pytorch_dict_is_read_changes_nothing(device):
    """Row 22 of docs/contract.md."""
    slots = {"step": np.float32(3), "exp_avg": np.ones(2, np.float32)}
    slots["exp_avg_sq"] = np.ones(2, np.float32)
    saved = {
        "state": {0: slots},
        "param_groups": [{"lr": 0.5, "betas": (0.9, 0.999), "foreach": None, "params": [0]}],
    }
    optimizer = optim.Adam([trained([1.0, 2.0], [0.5, 1.0], device)])
    optimizer.step()
    before, hits, number = everything(optimizer), set(), 0
    while True:
        number += 1
        with failing_at(number) as injection:
            try:
                optimizer.load_state_dict(saved)
            except InjectedError:
                pass
            else:
                break
        hits.add(injection.hit)
        assert everything(optimizer) == before, injection.hit
    assert {"translate", "_slots", "_group"} <= hits
    assert optimizer.param_groups[0]["lr"] == 0.5


class Refusing(Client):
    """A client that takes half of its state and then fails, once."""

    fails = True

    def load_state_dict(self, state):
        self.usage["calls"] = state["usage"]["calls"]
        if self.fails:
            self.fails = False
            raise ConnectionError("the model is gone")
        super().load_state_dict(state)


def test_a_client_that_refuses_its_state_undoes_the_others(device):
    """Row 22 of docs/contract.md."""
    saved = make(device, Client(), Refusing(), steps=2).state_dict()
    for group in saved["param_groups"]:
        group["forward"]["usage"] = {"calls": 7, "tokens": 7}
        group["backward"]["usage"] = {"calls": 8, "tokens": 8}
    clients = {"forward": Client(), "backward": Refusing()}
    optimizer = make(device, *clients.values(), steps=1)
    with unchanged(optimizer), pytest.raises(ConnectionError, match="the model is gone"):
        optimizer.load_state_dict(saved, model_clients=clients)
    assert [client.usage["calls"] for client in clients.values()] == [0, 0]


def test_no_client_is_touched_when_something_else_does_not_match(device):
    """Row 22 of docs/contract.md."""
    saved = make(device, Client(), Client(), steps=2).state_dict()
    saved["state"][0]["exp_avg"] = 3
    clients = {"forward": Refusing(), "backward": Refusing()}
    optimizer = make(device, *clients.values(), steps=1)
    with unchanged(optimizer), pytest.raises(ValueError, match="slot 'exp_avg' is a int"):
        optimizer.load_state_dict(saved, model_clients=clients)
    assert all(client.fails for client in clients.values())


def test_a_hook_that_fails_after_others_edited_the_dict_changes_nothing(device):
    """Row 22 of docs/contract.md."""
    optimizer = make(device, None, None, steps=1)
    saved = optimizer.state_dict()
    kept = picture(saved)

    def edit(_, state_dict):
        state_dict["state"] = {}

    def fail(*_):
        raise InjectedError

    optimizer.register_load_state_dict_pre_hook(edit)
    optimizer.register_load_state_dict_pre_hook(fail)
    with unchanged(optimizer), pytest.raises(InjectedError):
        optimizer.load_state_dict(saved)
    assert picture(saved) == kept


def test_the_next_step_after_a_failed_load_goes_on_from_before(device):
    """Row 22 of docs/contract.md."""
    straight, failed = (make(device, None, None, steps=2) for _ in range(2))
    saved = straight.state_dict()
    saved["state"][1]["exp_avg"] = np.zeros(9, np.float32)
    with pytest.raises(ValueError, match="nothing was loaded"):
        failed.load_state_dict(saved)
    straight.step()
    failed.step()
    assert everything(failed) == everything(straight)


def test_a_step_that_one_parameter_cannot_take_is_taken_by_none(device):
    """Row 22 of docs/contract.md."""
    good = trained([1.0], [1.0], device, name="good")
    bad = Foreign(array([1], device, np.int32), array([1], device, np.int32))
    optimizer = optim.Adam([("good", good), ("bad", bad)])
    message = "'bad' has dtype int32: use float32, float64, bfloat16 or float16"
    with unchanged(optimizer), pytest.raises(TypeError, match=message):
        optimizer.step()
    assert good not in optimizer.state


def test_a_group_that_is_refused_adds_nothing(device):
    """Row 22 of docs/contract.md."""
    optimizer = make(device, None, None, steps=1)
    group = {"params": [("new", trained([1.0], [1.0], device)), ("odd", 3)]}
    with unchanged(optimizer), pytest.raises(TypeError, match="element 1 of parameter group 2"):
        optimizer.add_param_group(group)


def moving(device):
    """An optimizer after a step, over Parameters and a foreign one, and all that it moves."""
    foreign = Foreign(array([5.0, 6.0], device), array([1.0, 1.0], device))
    params = [trained([1.0, 2.0], [0.5, 1.0], device), foreign, Parameter([4.0], device=device)]
    optimizer = optim.Adam(params)
    optimizer.step()
    return optimizer, params


def places(optimizer, params):
    """Return the devices of data, gradients and slots."""
    arrays = [one for param in params for one in (param.data, param.grad) if one is not None]
    arrays += [
        slots[name] for slots in optimizer.state.values() for name in slots if name != "step"
    ]
    return [device_of(array) for array in arrays]


@pytest.mark.parametrize(("source", "target"), [("cuda:0", "cpu"), ("cpu", "cuda:1")])
@pytest.mark.usefixtures("emulated")
def test_a_move_that_fails_at_any_copy_moves_nothing(source, target, monkeypatch):
    """Row 22 of docs/contract.md."""
    optimizer, params = moving(source)
    count = len(places(optimizer, params))
    before, copy = picture([params, everything(optimizer)]), transfer.copy

    for number in range(count):
        copied = []

        def fail_at(*arguments, copied=copied, number=number):
            if len(copied) == number:
                raise MemoryError
            copied.append(arguments)
            return copy(*arguments)

        monkeypatch.setattr(transfer, "copy", fail_at)
        with pytest.raises(MemoryError):
            optimizer.to(target)
        monkeypatch.undo()
        assert set(places(optimizer, params)) == {source}, number
        assert picture([params, everything(optimizer)]) == before, number
    optimizer.step()
    optimizer.to(target)
    assert places(optimizer, params) == [target] * count
