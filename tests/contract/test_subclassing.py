"""Rows 2, 4 and 20 of docs/contract.md: rules and parameters from outside the package."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device.arrays import device_of
from tests.contract.rules.lion import Lion
from tests.contract.support import Foreign, array, everything, host, trained, values


def lion_oracle(theta, gradients, lr, betas, decay):
    """The formulas of the paper, element by element in float64."""
    m = np.zeros_like(theta)
    for g in gradients:
        theta = theta * (1 - lr * decay) - lr * np.sign(betas[0] * m + (1 - betas[0]) * g)
        m = betas[1] * m + (1 - betas[1]) * g
    return theta, m


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 5), (4099,)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_rule_with_a_kernel_of_its_own_steps(device, shape, decay):
    rng = np.random.default_rng(3)
    start, gradients = rng.standard_normal(shape), rng.standard_normal((4, *shape))
    param = Parameter(start.copy(), device=device)
    optimizer = Lion([param], lr=0.05, weight_decay=decay)
    for gradient in gradients:
        param.grad = array(gradient, device, np.float64)
        optimizer.step()
    theta, m = lion_oracle(start, gradients, 0.05, (0.9, 0.99), decay)
    np.testing.assert_allclose(param.numpy(), theta, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(host(optimizer.state[param]["exp_avg"]), m, rtol=1e-12, atol=1e-14)


def test_both_twins_of_an_own_rule_agree_to_the_bit(emulated):
    rng = np.random.default_rng(4)
    start, gradient = rng.standard_normal((2, 1000)).astype(np.float32)
    params = [trained(start, gradient, place) for place in ("cpu", "cuda:0")]
    for param in params:
        optimizer = Lion([param], lr=0.1, weight_decay=0.2)
        for _ in range(3):
            optimizer.step()
    assert params[0].numpy().tobytes() == params[1].numpy().tobytes()
    assert len(emulated.record.launches) == 3


def test_strided_arrays_reach_an_own_rule_too(device):
    whole = array(np.ones((4, 6)), device)
    param = Parameter(whole[:, ::2])
    param.grad = array(np.ones((4, 3)), device)
    Lion([param], lr=0.5).step()
    assert host(whole)[0].tolist() == [0.5, 1.0] * 3


def test_an_own_rule_saves_loads_copies_and_pickles(device):
    param = trained([1.0, 2.0], [0.5, -1.0], device, name="w")
    optimizer = Lion([param], lr=0.1)
    optimizer.step()
    twins = [copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    twins.append(Lion([trained([0.0, 0.0], [0.5, -1.0], device, name="w")]))
    twins[2].load_state_dict(optimizer.state_dict(device="cpu"))
    twins[2].param_groups[0]["params"][0].data[...] = param.data
    for each in (optimizer, *twins):
        each.step()
        state = each.state[each.param_groups[0]["params"][0]]
        assert state["step"] == 2
        assert host(state["exp_avg"]).tolist() == host(optimizer.state[param]["exp_avg"]).tolist()
        assert values(each.param_groups[0]["params"][0]) == values(param)


def test_an_own_rule_checks_its_options():
    with pytest.raises(ValueError, match=r"betas\[0\] must be >= 0 and < 1, not 2"):
        Lion([Parameter([1.0])], betas=(2, 0.5))


def test_an_own_rule_is_told_apart_in_a_state_dict():
    optimizer = Lion([Parameter([1.0])])
    with pytest.raises(ValueError, match="saved by Adam, this is Lion"):
        optimizer.load_state_dict(optim.Adam([Parameter([1.0])]).state_dict())


class Stored(Parameter):
    """A parameter whose gradient somebody else puts where this one looks for it."""

    given = None

    @property
    def grad(self):
        return self.given


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam, Lion])
def test_a_parameter_subclass_with_a_gradient_of_its_own_is_asked_at_every_step(device, rule):
    """Its gradients are no news to the tokens and notes of Parameter."""
    plain, own = Parameter([1.0, 2.0], device=device), Stored([1.0, 2.0], device=device)
    optimizers = rule([plain], lr=0.5), rule([own], lr=0.5)
    for gradient in ([1.0, 3.0], [-2.0, 4.0], None, [0.5, -9.0], [5.0, 7.0]):
        own.given = plain.grad = None if gradient is None else array(gradient, device)
        for optimizer in optimizers:
            optimizer.step()
        assert values(own) == values(plain)


def test_a_parameter_subclass_with_data_of_its_own_is_asked_at_every_step(device):
    class Swapped(Parameter):
        @property
        def data(self):
            return self.arrays[self.turn]

    param = Swapped(array([1.0], device))
    param.arrays, param.turn = [array([1.0], device), array([5.0], device)], 0
    param.grad = array([1.0], device)
    optimizer = optim.SGD([param], lr=0.5)
    for param.turn in (0, 1, 0):
        optimizer.step()
    assert [host(each).tolist() for each in param.arrays] == [[0.0], [4.5]]


class HeavyBall(optim.Optimizer):
    """An optimizer in array operations alone, with state of its own."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                state["step"] = state.get("step", 0) + 1
                past = state.get("momentum_buffer", 0.0)
                state["momentum_buffer"] = group["momentum"] * past + param.grad
                param.data -= group["lr"] * state["momentum_buffer"]
        return loss


def test_an_optimizer_of_array_operations_agrees_with_the_fused_one(device):
    pair = [trained([1.0, 2.0], [0.5, -0.25], device, dtype=np.float64) for _ in range(2)]
    own, fused = HeavyBall([pair[0]]), optim.SGD([pair[1]], lr=0.1, momentum=0.9)
    for _ in range(5):
        own.step()
        fused.step()
    assert values(pair[0]) == pytest.approx(values(pair[1]), rel=1e-12)


def test_its_state_resumes(device):
    optimizer = HeavyBall([trained([1.0], [0.5], device, name="w")])
    for _ in range(2):
        optimizer.step()
    twin = HeavyBall([trained([1.0], [0.5], device, name="w")])
    twin.load_state_dict(optimizer.state_dict(device="cpu"))
    twin.param_groups[0]["params"][0].data[...] = optimizer.param_groups[0]["params"][0].data
    optimizer.step()
    twin.step()
    assert everything(twin) == everything(optimizer)


@pytest.mark.parametrize("rule", [optim.SGD, optim.Adam, Lion, HeavyBall])
def test_foreign_parameters_save_and_resume(device, rule):
    foreign = [Foreign(array([1.0, 2.0], device), array([0.5, 1.0], device)) for _ in range(2)]
    one, two = (rule([param], lr=0.1) for param in foreign)
    one.step()
    two.load_state_dict(one.state_dict())
    foreign[1].data[...] = foreign[0].data
    one.step()
    two.step()
    assert values(foreign[0]) == values(foreign[1])
    one.zero_grad()
    assert foreign[0].grad is None


def test_foreign_parameters_move(emulated):
    foreign = Foreign(np.ones(2, np.float32), np.ones(2, np.float32))
    optimizer = optim.Adam([foreign], lr=0.5)
    optimizer.step()
    optimizer.to("cuda:0")
    assert {device_of(x) for x in (foreign.data, foreign.grad)} == {"cuda:0"}
    optimizer.step()
    assert optimizer.state[foreign]["step"] == 2
    assert len(emulated.record.launches) == 1


def test_a_foreign_parameter_whose_array_is_replaced_goes_on(device):
    foreign = Foreign(array([1.0], device), array([1.0], device))
    optimizer = optim.SGD([foreign], lr=0.5)
    optimizer.step()
    foreign.data = array([5.0], device)
    optimizer.step()
    assert values(foreign) == [4.5]


def test_a_parameter_subclass_trains(device):
    class Scaled(Parameter):
        def __init__(self, data, scale, **options):
            super().__init__(data, **options)
            self.scale = scale

    param = Scaled([1.0], 3, device=device)
    param.grad = array([1.0], device)
    optim.SGD([param], lr=0.5).step()
    assert values(param) == [0.5]
