"""Groups and state that were edited so that something is missing: named, before any change."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from tests.contract.rules.lion import Lion
from tests.contract.support import MyOptimizer, picture, trained

RULES = [optim.SGD, optim.Adam, Lion, MyOptimizer]


@contextlib.contextmanager
def replaced(holder, name, value):
    """Replace an attribute or item inside a block."""
    items = holder if isinstance(holder, dict | list) else vars(holder)
    before = items[name]
    items[name] = value
    yield
    items[name] = before


@contextlib.contextmanager
def deleted(group, *keys):
    """Delete keys of a group inside a block."""
    before = dict(group)
    for key in keys:
        del group[key]
    yield
    group.update(before)


@contextlib.contextmanager
def appended(optimizer, group):
    """Append a group by hand inside a block."""
    optimizer.param_groups.append(group)
    yield
    optimizer.param_groups.remove(group)


def bare(device):
    return {"params": [trained([5.0], [1.0], device)]}


EDITS = {
    "state, a dict": (lambda o, _: replaced(o, "state", {}), TypeError, "state .* a dict.*clear"),
    "state, None": (lambda o, _: replaced(o, "state", None), TypeError, "state .* a NoneType"),
    "a bare group": (
        lambda o, device: appended(o, bare(device)),
        ValueError,
        "parameter group 1 has no .*'lr'.*'param_names'.*: .*add_param_group",
    ),
    "a group without names": (
        lambda o, device: appended(o, {**o.defaults, **bare(device)}),
        ValueError,
        "parameter group 1 has no 'param_names': .*add_param_group",
    ),
    "a group that is a list": (
        lambda o, device: appended(o, bare(device)["params"]),
        TypeError,
        "parameter group 1 must be a dict, not list",
    ),
    "no lr": (
        lambda o, _: deleted(o.param_groups[0], "lr"),
        ValueError,
        "parameter group 0 has no 'lr': put back",
    ),
    "no params": (
        lambda o, _: deleted(o.param_groups[0], "params"),
        ValueError,
        "parameter group 0 has no 'params': put back",
    ),
    "fewer names": (
        lambda o, _: replaced(o.param_groups[0], "param_names", ["a"]),
        ValueError,
        "2 'params' but 1 'param_names'",
    ),
    "groups in a tuple": (
        lambda o, _: replaced(o, "param_groups", tuple(o.param_groups)),
        TypeError,
        "param_groups must be the list it was, not a tuple",
    ),
}
CALLS = {
    "step": lambda o, _: o.step(),
    "state_dict": lambda o, _: o.state_dict(),
    "load_state_dict": lambda o, saved: o.load_state_dict(saved),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("edit", EDITS)
def test_what_is_missing_is_named_and_nothing_is_changed(device, edit, call, rule):
    make, error, message = EDITS[edit]
    params = [trained([1.0, 2.0], [0.5, 1.0], device, "a"), trained([3.0], [1.0], device, "b")]
    optimizer = rule(params, lr=0.1)
    optimizer.step()
    saved = optimizer.state_dict()
    state, before = optimizer.state, picture([params, *map(dict, optimizer.state.values())])
    with make(optimizer, device):
        with pytest.raises(error, match=message):
            CALLS[call](optimizer, saved)
        assert picture([params, *map(dict, state.values())]) == before
    optimizer.step()
    assert {slots["step"] for slots in state.values()} <= {2}


def test_a_pre_hook_may_put_back_what_is_missing():
    optimizer = MyOptimizer([Parameter([1.0])])
    lr = optimizer.param_groups[0].pop("lr")
    optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=lr))
    optimizer.step()


def test_an_emptied_state_begins_anew():
    param = SimpleNamespace(data=np.ones(1, np.float32), grad=np.ones(1, np.float32))
    optimizer = optim.Adam([param])
    optimizer.step()
    optimizer.state.clear()
    optimizer.step()
    assert optimizer.state[param]["step"] == 1
