"""Wrong calls: the error's type, the culprit and the remedy it names, and that nothing changed."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu
from lucid_gpu.optim.dialects import tiny_pytorch
from tests.contract.support import Foreign, array, trained, unchanged
from tests.contract.textual import Client


class World:
    """An optimizer in the middle of its work, and what a caller has at hand."""

    def __init__(self, device):
        self.device = device
        self.a = trained([1.0, 2.0], [0.5, 1.0], device, name="a")
        self.b = trained([3.0], [1.0], device, name="b")
        self.free = Parameter([5.0], name="free", device=device)
        self.adam = optim.Adam([self.a, self.b], lr=0.1)
        self.adam.step()
        self.own = Foreign(array([1.0], device), array([1.0], device))
        self.foreign = optim.SGD([("own", self.own)], momentum=0.9)
        self.foreign.step()

    def saved(self, **group):
        """Return a state dict of ``adam`` whose group differs from it."""
        result = self.adam.state_dict()
        result["param_groups"][0].update(group)
        return result

    def with_slot(self, **slots):
        """Return a state dict of ``adam`` in which slots of ``a`` differ."""
        result = self.adam.state_dict()
        result["state"][0].update(slots)
        return result

    def step_with(self, **attributes):
        """Step the foreign parameter, changed."""
        before = dict(vars(self.own))
        vars(self.own).update(attributes)
        try:
            self.foreign.step()
        finally:
            vars(self.own).update(before)

    def step_option(self, **options):
        """Step with options of the group edited."""
        before = dict(self.adam.param_groups[0])
        self.adam.param_groups[0].update(options)
        try:
            self.adam.step()
        finally:
            self.adam.param_groups[0].update(before)

    def step_slot(self, **slots):
        """Step with slots of ``a`` edited."""
        before = {name: self.adam.state[self.a][name] for name in slots}
        self.adam.state[self.a].update(slots)
        try:
            self.adam.step()
        finally:
            self.adam.state[self.a].update(before)


class WithDefaults(optim.Optimizer):
    """An optimizer whose defaults are the caller's."""


class Wrong(NamedTuple):
    """A wrong call, and what its error must say."""

    call: Any
    error: type[Exception]
    culprit: str
    remedy: str


def option(name, value, bound, rule=optim.Adam, error=ValueError, **others):
    """Return the wrong construction with an option out of bounds."""
    return Wrong(lambda w: rule([w.free], **{name: value, **others}), error, name, bound)


def group(culprit, remedy, error=ValueError, **content):
    """Return the wrong group, added to an optimizer."""
    return Wrong(lambda w: w.adam.add_param_group(content), error, culprit, remedy)


def load(change, error, culprit, remedy):
    """Return the wrong state dict, loaded."""
    return Wrong(lambda w: w.adam.load_state_dict(change(w)), error, culprit, remedy)


CONSTRUCTION = {
    "the base class": Wrong(
        lambda w: optim.Optimizer([w.free], {}), TypeError, "Optimizer", "subclass"
    ),
    "a bare parameter": Wrong(lambda w: optim.Adam(w.free), TypeError, "Parameter", "pass a list"),
    "a bare array": Wrong(lambda w: optim.Adam(w.free.data), TypeError, "ndarray", "pass a list"),
    "a bare foreign": Wrong(lambda w: optim.Adam(w.own), TypeError, "Foreign", "pass a list"),
    "a set": Wrong(lambda w: optim.Adam({w.free}), TypeError, "set", "pass a list"),
    "a dict": Wrong(lambda w: optim.Adam({"w": w.free}), TypeError, "dict", "pass a list"),
    "one group": Wrong(
        lambda w: optim.Adam({"params": [w.free]}), TypeError, "dict", "pass a list"
    ),
    "a number": Wrong(lambda _: optim.Adam(3), TypeError, "params", "iterable"),
    "None": Wrong(lambda _: optim.Adam(None), TypeError, "NoneType", "iterable"),
    "a string": Wrong(lambda _: optim.Adam("abc"), TypeError, "str", "iterable"),
    "the class": Wrong(lambda _: optim.Adam(Parameter), TypeError, "params .* type", "iterable"),
    "the class in a list": Wrong(
        lambda _: optim.Adam([Parameter]), TypeError, "class Parameter", "pass an instance"
    ),
    "the class in a pair": Wrong(
        lambda _: optim.Adam([("w", Parameter)]), TypeError, "class Parameter", "pass an instance"
    ),
    "an empty list": Wrong(lambda _: optim.Adam([]), ValueError, "params", "at least one"),
    "a used-up generator": Wrong(lambda _: optim.Adam(iter(())), ValueError, "params", "generator"),
    "an array among parameters": Wrong(
        lambda w: optim.Adam([w.free, w.free.data]), TypeError, "element 1", "wrap arrays"
    ),
    "a number among parameters": Wrong(
        lambda w: optim.Adam([w.free, 0.5]), TypeError, "element 1 .*float", "data and grad"
    ),
    "a string among parameters": Wrong(
        lambda w: optim.Adam(["w", w.free]), TypeError, "element 0 .*str", "data and grad"
    ),
    "a pair the wrong way round": Wrong(
        lambda w: optim.Adam([(w.free, "w")]), TypeError, "element 0 .*tuple", "data and grad"
    ),
    "a pair without parameter": Wrong(
        lambda _: optim.Adam([("w", 3)]), TypeError, "element 0 .*int", "data and grad"
    ),
    "named beside unnamed": Wrong(
        lambda w: optim.Adam([w.free, Parameter([1.0])]), ValueError, "element 1", "name"
    ),
    "parameters beside groups": Wrong(
        lambda w: optim.Adam([w.free, {"params": [w.a]}]), TypeError, "element 1 .*dict", "all as"
    ),
    "a parameter in two groups": Wrong(
        lambda w: optim.Adam([{"params": [w.free]}, {"params": [w.free]}]),
        ValueError,
        "'free'",
        "one group",
    ),
    "a group without params": Wrong(
        lambda _: optim.Adam([{"lr": 1}]), ValueError, "'params'", "add the list"
    ),
    "defaults that are no dict": Wrong(
        lambda w: WithDefaults([w.free], 3),
        TypeError,
        "defaults",
        "must be a dict",
    ),
    "an unknown option": Wrong(
        lambda w: optim.Adam([w.free], momentum=0.9), TypeError, "momentum", "unexpected keyword"
    ),
}

HYPERPARAMETERS = {
    "lr < 0": option("lr", -1, ">= 0, not -1"),
    "lr NaN": option("lr", math.nan, "finite, not nan"),
    "lr infinite": option("lr", math.inf, "finite, not inf"),
    "lr a string": option("lr", "0.1", "a number, not '0.1'", error=TypeError),
    "lr None": option("lr", None, "a number, not None", error=TypeError),
    "lr True": option("lr", True, "a number, not True", error=TypeError),
    "lr complex": option("lr", 1j, "a number, not 1j", error=TypeError),
    "lr an array": option("lr", np.ones(1), "a number, not array", error=TypeError),
    "eps < 0": option("eps", -1e-8, ">= 0, not -1e-08"),
    "weight_decay < 0": option("weight_decay", -0.1, r">= 0, not -0\.1"),
    "weight_decay NaN": option("weight_decay", math.nan, "finite", rule=optim.AdamW),
    "beta1 = 1": option("betas", (1, 0.9), ">= 0 and < 1, not 1"),
    "beta2 < 0": option("betas", (0.9, -0.1), r">= 0 and < 1, not -0\.1"),
    "one beta": option("betas", (0.9,), "tuple of 2 numbers"),
    "betas a number": option("betas", 0.9, "tuple of 2 numbers"),
    "a beta that is text": option("betas", ("0.9", 0.9), "a number", error=TypeError),
    "amsgrad unknown": option("amsgrad", "vhat", "one of False, True, 'raw', not 'vhat'"),
    "amsgrad 1": option("amsgrad", 1, "one of False, True, 'raw', not 1"),
    "maximize 1": option("maximize", 1, "one of False, True, not 1"),
    "decoupled None": option("decoupled_weight_decay", None, "one of False, True, not None"),
    "momentum < 0": option("momentum", -0.9, ">= 0", rule=optim.SGD),
    "dampening NaN": option("dampening", math.nan, "finite", rule=optim.SGD),
    "nesterov alone": option("nesterov", True, "needs momentum > 0", rule=optim.SGD),
    "nesterov dampened": option(
        "nesterov", True, "dampening 0", rule=optim.SGD, momentum=0.9, dampening=0.1
    ),
    "nesterov a string": option("nesterov", "yes", "one of False, True", rule=optim.SGD),
    "beta1 of the dialect": Wrong(
        lambda w: tiny_pytorch.Adam([w.free], beta1=1.0), ValueError, r"betas\[0\]", "< 1"
    ),
    "momentum of the dialect": option("momentum", -1, ">= 0", rule=tiny_pytorch.SGD),
}

GROUPS = {
    "a list": Wrong(
        lambda w: w.adam.add_param_group([w.free]), TypeError, "list", "must be a dict"
    ),
    "no params": group("'params'", "add the list", lr=0.1),
    "empty params": group("'params' of parameter group 1", "at least one", params=[]),
    "a number as params": group("'params' of parameter group 1", "iterable", TypeError, params=3),
    "a set as params": group("set", "pass a list", TypeError, params=frozenset([1])),
    "an element": group("element 0 .*int", "data and grad", TypeError, params=[3]),
    "an overlap": Wrong(
        lambda w: w.adam.add_param_group({"params": [w.free, w.b]}), ValueError, "'b'", "one group"
    ),
    "a bad option": Wrong(
        lambda w: w.adam.add_param_group({"params": [w.free], "lr": -1}), ValueError, "lr", ">= 0"
    ),
    "unnamed": Wrong(
        lambda w: w.adam.add_param_group({"params": [Parameter([1.0])]}),
        ValueError,
        "groups 0 and 1",
        "name those of all",
    ),
    "too few names": Wrong(
        lambda w: w.adam.add_param_group({"params": [w.free], "param_names": ["x", "y"]}),
        ValueError,
        "'param_names'.* 2 names",
        "one each",
    ),
    "names in a string": Wrong(
        lambda w: w.adam.add_param_group({"params": [w.free], "param_names": "x"}),
        TypeError,
        "'param_names'",
        "list of strings",
    ),
    "a name that is a number": Wrong(
        lambda w: w.adam.add_param_group({"params": [w.free], "param_names": [1]}),
        TypeError,
        "'param_names'",
        "list of strings",
    ),
}


def sgd_step(*params):
    """Step these parameters, all of which have a gradient."""
    for param in params:
        param.grad = param.data.copy()
    optim.SGD(params).step()


STEPS = {
    "a closure that is a value": Wrong(
        lambda w: w.adam.step(0.5), TypeError, "closure", "pass the function"
    ),
    "a gradient of another shape": Wrong(
        lambda w: setattr(w.a, "grad", array([1.0], w.device)), ValueError, "'a'.*shape", "reshape"
    ),
    "a gradient of another dtype": Wrong(
        lambda w: setattr(w.a, "grad", array([1, 2], w.device, np.int32)),
        ValueError,
        "'a'.*int32",
        r"\.astype\('float32'\)",
    ),
    "a gradient that is a list": Wrong(
        lambda w: setattr(w.a, "grad", [1.0, 2.0]), TypeError, "'a'.*list", "NumPy or CuPy array"
    ),
    "a gradient of a frozen parameter": Wrong(
        lambda w: setattr(
            Parameter([1.0], requires_grad=False, name="f"), "grad", np.ones(1, np.float32)
        ),
        ValueError,
        "'f'",
        "requires_grad=True",
    ),
    "data of another shape": Wrong(
        lambda w: setattr(w.a, "data", array([1.0], w.device)), ValueError, "'a'.*shape", "reshape"
    ),
    "foreign shape": Wrong(
        lambda w: w.step_with(grad=array([1.0, 2.0], w.device)), ValueError, "'own'", "reshape"
    ),
    "foreign dtype": Wrong(
        lambda w: w.step_with(grad=array([1.0], w.device, np.float64)), ValueError, "'own'", "cast"
    ),
    "foreign list": Wrong(
        lambda w: w.step_with(grad=[1.0]), ValueError, "'own' is a list", "NumPy or CuPy array"
    ),
    "foreign data of whole numbers": Wrong(
        lambda w: w.step_with(data=array([1], w.device, np.int64)),
        TypeError,
        "'own'",
        "use float32",
    ),
    "foreign data that is a list": Wrong(
        lambda w: w.step_with(data=[1.0]), TypeError, "'own' holds a list", "NumPy or CuPy array"
    ),
    "state that no longer fits": Wrong(
        lambda w: w.step_with(data=array([1.0, 2.0], w.device), grad=array([1.0, 2.0], w.device)),
        ValueError,
        "'momentum_buffer' of parameter 'own'",
        "reshape",
    ),
    "two parameters in one memory": Wrong(
        lambda w: sgd_step(Parameter(w.a.data, name="x"), Parameter(w.a.data, name="y")),
        ValueError,
        "'x' and 'y' share memory",
        "pass one of them",
    ),
    "a parameter that is a broadcast view": Wrong(
        lambda w: sgd_step(
            Parameter(gpu.module(w.device).broadcast_to(w.a.data[:1], (3,)), name="x")
        ),
        ValueError,
        "'x' is (read-only|a broadcast view)",
        "pass a copy",
    ),
    "a broadcast view that can be written to": Wrong(
        lambda _: sgd_step(
            Parameter(np.ndarray((2, 3), np.float32, bytearray(12), strides=(0, 4)), name="x")
        ),
        ValueError,
        "'x' is a broadcast view",
        "pass a copy",
    ),
    "a parameter that is read-only": Wrong(
        lambda _: sgd_step(Parameter(np.frombuffer(b"\0" * 8, np.float32), name="x")),
        ValueError,
        "'x' is read-only",
        "pass a copy",
    ),
    "an option edited out of bounds": Wrong(
        lambda w: w.step_option(lr=-1), ValueError, "lr", ">= 0"
    ),
    "a slot of another shape": Wrong(
        lambda w: w.step_slot(exp_avg=array([1.0], w.device)),
        ValueError,
        "'exp_avg'.*'a'",
        "reshape",
    ),
    "a step count that is no int": Wrong(
        lambda w: w.step_slot(step=1.5), ValueError, "'a': slot 'step'", "int >= 0"
    ),
    "a step count that no float can hold": Wrong(
        lambda w: w.step_slot(step=2**53 + 1), ValueError, "'a': slot 'step'", r"<= 2\*\*53, not"
    ),
    "a hook that is no function": Wrong(
        lambda w: w.adam.register_step_pre_hook(None), TypeError, "hook", "callable"
    ),
    "an unknown device": Wrong(lambda w: w.adam.to("gpu"), ValueError, "'gpu'", "use 'cpu'"),
    "a device that is no string": Wrong(lambda w: w.adam.to(0), TypeError, "device", "'cuda:0'"),
    "a snapshot on an unknown device": Wrong(
        lambda w: w.adam.state_dict(device="host"), ValueError, "'host'", "use 'cpu'"
    ),
}

STATE_DICTS = {
    "None": load(lambda _: None, TypeError, "NoneType", "must be a dict"),
    "a list": load(lambda _: [1], TypeError, "list", "must be a dict"),
    "an empty dict": load(lambda _: {}, KeyError, "'state'", "it has"),
    "no groups": load(lambda _: {"state": {}}, KeyError, "'param_groups'", "it has"),
    "state a list": load(
        lambda _: {"state": [], "param_groups": []}, TypeError, "'state'", "must not be"
    ),
    "a group that is a list": load(
        lambda _: {"state": {}, "param_groups": [[]]}, TypeError, r"\[0\]", "must be a dict"
    ),
    "a group without params": load(
        lambda _: {"state": {}, "param_groups": [{}]}, KeyError, "'params'", "it has"
    ),
    "ids that are numbers with a point": load(
        lambda w: w.saved(params=[0.5, 1.5]), TypeError, "'params'", "list of ids"
    ),
    "an id twice": load(lambda w: w.saved(params=[0, 0]), ValueError, "id 0", "another parameter"),
    "an id of no group": load(
        lambda w: {**w.saved(), "state": {9: {}}}, ValueError, "id 9", "no group holds"
    ),
    "too few parameters": load(
        lambda w: {"state": {}, "param_groups": [{"params": [0]}]},
        ValueError,
        "1 parameters saved, 2 here: 'a', 'b'",
        "strict=False",
    ),
    "other names": load(
        lambda w: w.saved(param_names=["a", "z"]), ValueError, "'z'", "strict=False"
    ),
    "two names alike": load(
        lambda w: w.saved(param_names=["b", "b"]), ValueError, "'b'", "its own name"
    ),
    "another class": load(
        lambda w: w.saved(optimizer_class="SGD"), ValueError, "SGD, this is Adam", "strict=False"
    ),
    "an option out of bounds": load(
        lambda w: w.saved(betas=(0.9, 2)), ValueError, r"betas\[1\]", "< 1"
    ),
    "an option of another type": load(
        lambda w: w.saved(lr="high"), ValueError, "lr must be a number", "strict=False"
    ),
    "an unknown slot": load(
        lambda w: w.with_slot(velocity=1), ValueError, "'a': slot 'velocity'", "strict=False"
    ),
    "a slot of another shape": load(
        lambda w: w.with_slot(exp_avg=np.zeros(3, np.float32)), ValueError, "'a': slot", "reshape"
    ),
    "a slot of another dtype": load(
        lambda w: w.with_slot(exp_avg=np.zeros(2)), ValueError, "'a': slot 'exp_avg'", "astype"
    ),
    "a slot that is a number": load(
        lambda w: w.with_slot(exp_avg=0.0), ValueError, "'exp_avg' is a float", "NumPy or CuPy"
    ),
    "a class in a list": load(
        lambda w: w.saved(optimizer_class=["Adam"]), TypeError, "'optimizer_class'", "name of a"
    ),
    "names without a hash": load(
        lambda w: w.saved(param_names=[["a"], "b"]), TypeError, "'param_names'", "list of strings"
    ),
    "names that are numbers": load(
        lambda w: w.saved(param_names=[0, 1]), TypeError, "'param_names'", "list of strings"
    ),
    "a step that no float can hold": load(
        lambda w: w.with_slot(step=10**400), ValueError, "'a': slot 'step'", r"<= 2\*\*53"
    ),
    "a step that no text can hold": load(
        lambda w: w.with_slot(step=-(10**5000)), ValueError, "'a': slot 'step'", r"<= 2\*\*53"
    ),
    "a negative step": load(
        lambda w: w.with_slot(step=-1), ValueError, "'a': slot 'step'", "int >= 0"
    ),
    "a live option without client": load(
        lambda w: w.saved(judge={"class_type": "Client"}), ValueError, "'judge'", "model_clients="
    ),
    "an option that is an object": load(
        lambda w: w.saved(judge=object()), TypeError, "'judge' is a object", "use numbers"
    ),
    "clients in the place of strict": Wrong(
        lambda w: w.adam.load_state_dict(w.saved(), {"judge": Client()}),
        TypeError,
        "strict",
        "model_clients=",
    ),
    "clients in a list": Wrong(
        lambda w: w.adam.load_state_dict(w.saved(), model_clients=[Client()]),
        TypeError,
        "model_clients",
        "must be a dict",
    ),
    "strict as a number": Wrong(
        lambda w: w.adam.load_state_dict(w.saved(), strict=1), TypeError, "strict", "True or False"
    ),
}

TABLES = {
    "construction": CONSTRUCTION,
    "hyperparameters": HYPERPARAMETERS,
    "groups": GROUPS,
    "steps": STEPS,
    "state dicts": STATE_DICTS,
}
CALLS = {f"{kind}: {name}": w for kind, table in TABLES.items() for name, w in table.items()}


@pytest.mark.parametrize("wrong", CALLS)
def test_a_wrong_call_names_culprit_and_remedy_and_changes_nothing(device, wrong):
    call, error, culprit, remedy = CALLS[wrong]
    world = World(device)
    with unchanged(world.adam, world.foreign), pytest.raises(error, match=culprit) as caught:
        call(world)
    assert type(caught.value) is error
    caught.match(remedy)
    assert world.free.grad is None
    world.adam.step()
    world.foreign.step()
    assert {slots["step"] for slots in world.adam.state.values()} == {2}
