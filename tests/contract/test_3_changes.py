"""Row 18d of docs/contract.md: gradients that come and go, data that is replaced, edited options.

They cost a look at all tensors and no more, and do not show in the result.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu, transfer
from tests.contract.support import Foreign, array, host, trained
from tests.emulation.machine import Record
from tests.stepping import bits

SIZES = (3, 5000, 2)


def stepped(device, rule=optim.Adam, **options):
    """An optimizer after two steps, in two groups, and its parameters."""
    params = [trained(np.ones(size), np.full(size, 0.5), device) for size in SIZES]
    optimizer = rule([{"params": params[:2]}, {"params": params[2:]}], lr=0.1, **options)
    for _ in range(2):
        optimizer.step()
    return optimizer, params


def toggle(optimizer, params):
    """Take a gradient away, and give it back."""
    kept, params[1].grad = params[1].grad, None
    optimizer.step()
    params[1].grad = kept
    optimizer.step()


def exchange(optimizer, params):
    """Take away one gradient as another comes back."""
    kept, params[0].grad = params[0].grad, None
    optimizer.step()
    params[0].grad, params[2].grad = kept, None
    optimizer.step()


def take_all(optimizer, params):
    """Step without any gradient."""
    kept = [param.grad for param in params]
    optimizer.zero_grad()
    optimizer.step()
    for param, grad in zip(params, kept, strict=True):
        param.grad = grad
    optimizer.step()


def replace(optimizer, params):
    """Give a parameter another array."""
    for param, new in zip(params, optimizer.spare, strict=True):
        param.data = new
        optimizer.step()


def edit(optimizer, params):
    """Edit options that ask for no other variant."""
    optimizer.param_groups[1].update(lr=0.5, weight_decay=0.1, maximize=True)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()


CHANGES = {change.__name__: change for change in (toggle, exchange, take_all, replace, edit)}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_builds_nothing_anew(device, change):
    """Row 18d of docs/contract.md."""
    optimizer, params = stepped(device)
    optimizer.spare = [transfer.copy(param.data, device) for param in params]
    prepared = optimizer._prepared
    executors = [part.executor for part in prepared.parts]
    CHANGES[change](optimizer, params)
    assert optimizer._prepared is prepared
    assert [part.executor for part in prepared.parts] == executors


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_compiles_and_allocates_nothing(emulated, change, rule):
    """Row 18d of docs/contract.md."""
    optimizer, params = stepped("cuda:0", rule)
    optimizer.spare = [transfer.copy(param.data, "cuda:0") for param in params]
    emulated.record = Record()
    CHANGES[change](optimizer, params)
    record = emulated.record
    assert (record.compiles, record.allocations, record.synchronizations) == ([], 0, 0)


def test_a_gradient_that_comes_for_the_first_time_makes_its_slots_and_nothing_else(emulated):
    """Row 18d of docs/contract.md."""
    params = [trained(np.ones(size), np.ones(size), "cuda:0") for size in SIZES]
    kept, params[1].grad = params[1].grad, None
    optimizer = optim.Adam(params)
    optimizer.step()
    prepared = optimizer._prepared
    params[1].grad = kept
    emulated.record = Record()
    optimizer.step()
    assert (emulated.record.compiles, emulated.record.allocations) == ([], 2)
    assert optimizer._prepared is prepared


def test_a_gradient_that_comes_for_the_first_time_keeps_the_prepared_step(device):
    """Row 18d of docs/contract.md."""
    params = [trained(np.ones(size), np.ones(size), device) for size in SIZES]
    kept, params[0].grad = params[0].grad, None
    optimizer = optim.Adam(params)
    optimizer.step()
    prepared = optimizer._prepared
    params[0].grad = kept
    optimizer.step()
    assert optimizer._prepared is prepared
    assert [optimizer.state[param]["step"] for param in params] == [1, 2, 2]


def test_a_gradient_that_goes_costs_one_copy_of_addresses(emulated):
    """Row 18d of docs/contract.md."""
    optimizer, params = stepped("cuda:0")
    params[1].grad = None
    emulated.record = Record()
    optimizer.step()
    assert emulated.record.uploads == [8 * len(params)]


def test_a_data_array_that_is_replaced_costs_one_copy_of_its_record(emulated):
    """Row 18d of docs/contract.md."""
    optimizer, params = stepped("cuda:0")
    params[1].data = transfer.copy(params[1].data, "cuda:0")
    emulated.record = Record()
    optimizer.step()
    assert len(emulated.record.uploads) == 1
    assert emulated.record.uploads[0] < 64


def test_an_option_that_asks_for_another_variant_is_obeyed(device):
    """Rows 7 and 18d of docs/contract.md."""
    optimizer, params = stepped(device)
    optimizer.param_groups[1]["amsgrad"] = True
    optimizer.step()
    assert "max_exp_avg_sq" in optimizer.state[params[2]]
    assert "max_exp_avg_sq" not in optimizer.state[params[0]]


class Pair:
    """One optimizer over all parameters, and one for each, which cannot see what others do."""

    def __init__(self, rule, kind, device, sizes, group_of, options):
        rng = np.random.default_rng(3)
        self.device, self.rng = device, rng
        starts = [rng.standard_normal(size).astype(np.float32) for size in sizes]
        make = Parameter if kind == "own" else Foreign
        self.ours = [make(array(start, device)) for start in starts]
        self.theirs = [Parameter(start.copy()) for start in starts]
        members = [[i for i in range(len(sizes)) if group_of[i] == g] for g in range(3)]
        self.members = [own for own in members if own]
        self.together = rule(
            [
                {"params": [self.ours[i] for i in own], "lr": 0.5 / (1 + number)}
                for number, own in enumerate(self.members)
            ],
            **options,
        )
        self.alone = {
            i: rule([self.theirs[i]], **{**options, "lr": 0.5 / (1 + number)})
            for number, own in enumerate(self.members)
            for i in own
        }

    def set_gradients(self, present):
        for i, (one, other) in enumerate(zip(self.ours, self.theirs, strict=True)):
            grad = self.rng.standard_normal(host(one.data).shape).astype(np.float32)
            one.grad = array(grad, self.device) if present[i] else None
            other.grad = grad if present[i] else None

    def replace(self, number):
        one, other = self.ours[number], self.theirs[number]
        one.data, other.data = transfer.copy(one.data, self.device), other.data.copy()

    def fill(self, number, value):
        for param in (self.ours[number], self.theirs[number]):
            with gpu.on(self.device if param is self.ours[number] else "cpu"):
                param.data = param.data * 0 + np.float32(value)

    def edit(self, number, **options):
        number %= len(self.members)
        self.together.param_groups[number].update(options)
        for i in self.members[number]:
            self.alone[i].param_groups[0].update(options)

    def step(self):
        self.together.step()
        for i, optimizer in self.alone.items():
            optimizer.step()
            slots = dict(self.together.state.get(self.ours[i], {}))
            expected = dict(optimizer.state.get(self.theirs[i], {}))
            assert slots.keys() == expected.keys()
            assert slots.pop("step", 0) == expected.pop("step", 0)
            pairs = [(self.ours[i].data, self.theirs[i].data)]
            pairs += [(slots[name], expected[name]) for name in expected]
            for one, other in pairs:
                np.testing.assert_array_equal(bits(one), bits(other))


EDITS = st.sampled_from(
    [{"lr": 0.25}, {"lr": 1.0}, {"weight_decay": 0.5}, {"weight_decay": 0.0}, {"maximize": True}]
)
SWITCHES = {
    optim.SGD: st.sampled_from([{"momentum": 0.5}, {"momentum": 0.0}]),
    optim.Adam: st.sampled_from([{"amsgrad": True}, {"amsgrad": False}, {"amsgrad": "raw"}]),
}


@pytest.mark.parametrize("kind", ["own", "foreign"])
@pytest.mark.parametrize("rule", SWITCHES)
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_each_parameter_steps_as_if_it_were_alone(device, rule, kind, data):
    """Row 18d of docs/contract.md."""
    sizes = data.draw(st.lists(st.sampled_from([0, 1, 4, 4097, 6000]), min_size=1, max_size=5))
    count = len(sizes)
    group_of = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    options = data.draw(st.just({}) | SWITCHES[rule])
    pair = Pair(rule, kind, device, sizes, group_of, options)
    number = st.integers(0, count - 1)
    for _ in range(data.draw(st.integers(2, 5))):
        pair.set_gradients(
            data.draw(st.lists(st.booleans(), min_size=count, max_size=count), label="present")
        )
        for _ in range(data.draw(st.integers(0, 2))):
            match data.draw(st.sampled_from(["replace", "fill", "edit", "switch"])):
                case "replace":
                    pair.replace(data.draw(number))
                case "fill":
                    pair.fill(data.draw(number), 3)
                case "edit":
                    pair.edit(data.draw(number), **data.draw(EDITS))
                case _:
                    pair.edit(data.draw(number), **data.draw(SWITCHES[rule]))
        pair.step()
