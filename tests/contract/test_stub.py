"""Row 19 of docs/contract.md: OptimizerStub, and trainers that follow no gradient."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.device.arrays import device_of
from tests.contract.support import array, everything, trained, unchanged, values


class Trainer:
    """A loop that knows nothing of how its model learns: it steps, counts and schedules."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.losses = []
        optimizer.register_step_post_hook(self._decay)

    def _decay(self, optimizer, args, kwargs):
        for group in optimizer.param_groups:
            group["lr"] *= 0.97

    def train(self, loss_of, batches):
        for batch in batches:
            self.optimizer.zero_grad()
            self.losses.append(self.optimizer.step(lambda batch=batch: loss_of(batch)))


def test_a_hebbian_learner_trains_under_the_stub(device):
    """Oja's rule finds the direction of greatest variance."""
    rng = np.random.default_rng(0)
    direction = np.array([0.6, 0.8], np.float32)
    samples = rng.standard_normal((400, 1)) * direction + 0.05 * rng.standard_normal((400, 2))
    weight = Parameter(np.array([1.0, 0.0], np.float32), name="w", device=device)
    optimizer = optim.OptimizerStub([weight], lr=0.5)

    def learn(batch):
        x = array(batch, device)
        y = x @ weight.data
        rate = optimizer.param_groups[0]["lr"]
        weight.data += rate * (x.T @ y - (y @ y) * weight.data) / len(batch)
        return float(1 - abs(weight.numpy() @ direction))

    trainer = Trainer(optimizer)
    trainer.train(learn, np.split(np.concatenate([samples] * 3), 60))
    assert trainer.losses[-1] < 0.01 < trainer.losses[0]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.97**60)
    assert optimizer.state_dict()["state"] == {}


def test_k_means_trains_under_the_stub_without_parameters(device):
    """Row 19 of docs/contract.md."""
    rng = np.random.default_rng(1)
    true = np.array([[-2.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    points = np.concatenate([c + 0.1 * rng.standard_normal((50, 2)) for c in true])
    x = array(points, device)
    centers = Parameter(points[[0, 50, 100]].astype(np.float32), device=device)
    optimizer, steps = optim.OptimizerStub(), []
    optimizer.register_step_pre_hook(lambda *_: steps.append("pre"))

    def assign(_):
        distance = ((x[:, None, :] - centers.data[None]) ** 2).sum(-1)
        nearest = distance.argmin(1)
        for k in range(3):
            centers.data[k] = x[nearest == k].mean(0)
        return float(distance.min(1).mean())

    trainer = Trainer(optimizer)
    trainer.train(assign, range(5))
    assert trainer.losses[-1] <= trainer.losses[0]
    np.testing.assert_allclose(centers.numpy(), true, atol=0.1)
    assert steps == ["pre"] * 5


STEP_HOOKS = ["register_step_pre_hook", "register_step_post_hook"]
STATE_HOOKS = [
    f"register_{call}_{when}_hook"
    for call in ("state_dict", "load_state_dict")
    for when in ("pre", "post")
]


@pytest.mark.parametrize("register", [*STEP_HOOKS, *STATE_HOOKS])
def test_every_registration_works_on_the_stub(register):
    """Row 19 of docs/contract.md."""
    stub, calls = optim.OptimizerStub(), []
    handle = getattr(stub, register)(lambda *_: calls.append(register))
    stub.step()
    stub.load_state_dict(stub.state_dict())
    handle.remove()
    stub.step()
    stub.load_state_dict(stub.state_dict())
    assert calls == [register]


def test_groups_can_be_added_to_the_stub(device):
    """Row 19 of docs/contract.md."""
    stub = optim.OptimizerStub()
    stub.add_param_group({"params": [trained([1.0], [1.0], device)], "lr": 0.5})
    stub.step()
    assert [group["lr"] for group in stub.param_groups] == [0.5]
    assert stub.state_dict()["param_groups"][0]["params"] == [0]


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad_works_on_the_stub(device, set_to_none):
    """Row 19 of docs/contract.md."""
    param = trained([1.0], [1.0], device)
    optim.OptimizerStub([param]).zero_grad(set_to_none)
    assert param.grad is None if set_to_none else not param.grad.any()


def test_the_stub_loads_what_it_saved(device):
    """Row 19 of docs/contract.md."""
    stub = optim.OptimizerStub([trained([1.0], [1.0], device)], lr=0.5)
    saved = stub.state_dict()
    stub.param_groups[0]["lr"] = 0.1
    stub.load_state_dict(saved)
    assert stub.param_groups[0]["lr"] == 0.5


def test_the_stub_refuses_what_does_not_fit():
    """Row 19 of docs/contract.md."""
    stub = optim.OptimizerStub()
    with (
        unchanged(stub),
        pytest.raises(ValueError, match="1 parameter groups, this optimizer has 0"),
    ):
        stub.load_state_dict(optim.SGD([Parameter([1.0])]).state_dict())


def test_the_stub_can_be_copied_pickled_moved_and_shown(device):
    """Row 19 of docs/contract.md."""
    stub = optim.OptimizerStub([Parameter([1.0], device=device)])
    assert everything(copy.deepcopy(stub)) == everything(stub)
    assert everything(pickle.loads(pickle.dumps(stub))) == everything(stub)
    assert stub.to("cpu") is stub
    assert repr(stub).startswith("OptimizerStub (\nParameter Group 0\n    lr: 0.0")
    assert device_of(stub.param_groups[0]["params"][0].data) == "cpu"


def test_the_stub_takes_the_place_of_an_optimizer(device):
    """A loop written for one runs with the other, and only the update is missing."""
    seen = {}
    for make in (optim.SGD, optim.OptimizerStub):
        param = trained([1.0], [1.0], device)
        optimizer = make([param], lr=0.5)
        assert optimizer.step(lambda: "loss") == "loss"
        optimizer.load_state_dict(optimizer.state_dict())
        seen[make] = values(param)
    assert seen == {optim.SGD: [0.5], optim.OptimizerStub: [1.0]}
