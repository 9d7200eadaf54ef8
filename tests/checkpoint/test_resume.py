"""A run that is saved and resumed is the run that was never interrupted, to the bit."""

import copy

import numpy as np
import pytest

from lucid_gpu import Parameter, optim
from lucid_gpu.checkpoint import Checkpointer, CheckpointError
from lucid_gpu.device import transfer
from tests.checkpoint import trees

OPTIONS = {
    "SGD": [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}],
    "Adam": [{}, {"amsgrad": True}, {"amsgrad": "raw", "weight_decay": 0.01}],
}

OPTIMIZERS = [
    pytest.param(found, options, id=f"{name} {options}")
    for name, found in vars(optim).items()
    if isinstance(found, type)
    and issubclass(found, optim.FusedOptimizer)
    and found is not optim.FusedOptimizer
    for options in OPTIONS.get(name, [{}])
]


class Run:
    """A small model in two groups, with gradients that depend on nothing but the step."""

    def __init__(self, optimizer, options, device):
        draw = np.random.default_rng(0)
        shapes = {"w": (13, 7), "b": (7,), "scale": (), "frozen": (3,)}
        self.params = {
            name: Parameter(draw.standard_normal(shape, np.float32), name != "frozen", name, device)
            for name, shape in shapes.items()
        }
        w, *others = self.params.values()
        groups = [{"params": [w]}, {"params": others, "lr": 0.02}]
        self.optimizer = optimizer(groups, **{"lr": 0.01, **options})
        self.step = 0

    def train(self, steps):
        for _ in range(steps):
            draw = np.random.default_rng(self.step)
            for name, p in self.params.items():
                grad = draw.standard_normal(p.shape, np.float32) + np.float32(0.5)
                skipped = name == "frozen" or (name == "b" and self.step == 0)
                p.grad = None if skipped else transfer.copy(np.asarray(grad), p.device)
            self.optimizer.param_groups[0]["lr"] *= 0.9
            self.optimizer.step()
            self.step += 1
        return self

    def tree(self):
        return {"params": self.params, "optimizer": self.optimizer, "step": self.step}

    def resume(self, checkpointer):
        self.step = checkpointer.restore(into=self.tree())["step"]
        return self

    def outcome(self):
        data = {name: p.numpy() for name, p in self.params.items()}
        return [data, self.optimizer.state_dict(device="cpu")]


@pytest.mark.parametrize("block", [True, False], ids=["blocking", "background"])
@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_resuming_equals_no_interruption(tmp_path, quick_sync, device, optimizer, options, block):
    expected = Run(optimizer, options, device).train(6).outcome()
    with Checkpointer(tmp_path) as checkpointer:
        first = Run(optimizer, options, device).train(3)
        checkpointer.save(3, first.tree(), block=block)
        first.train(3)
        second = Run(optimizer, options, device).resume(checkpointer).train(3)
    assert trees.same(first.outcome(), expected)
    assert trees.same(second.outcome(), expected)


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS)
def test_resuming_on_another_device_and_back_equals_no_interruption(
    tmp_path, quick_sync, device, optimizer, options
):
    expected = Run(optimizer, options, "cpu").train(6).outcome()
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, Run(optimizer, options, "cpu").train(2).tree())
        checkpointer.save(4, Run(optimizer, options, device).resume(checkpointer).train(2).tree())
        last = Run(optimizer, options, "cpu").resume(checkpointer).train(2)
    assert trees.same(last.outcome(), expected)


def test_an_optimizer_that_does_not_fit_refuses_and_nothing_changes(tmp_path, quick_sync):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(2, Run(optim.Adam, {}, "cpu").train(2).tree())
        other = Run(optim.Adam, {}, "cpu").train(1)
        del other.optimizer.param_groups[1]
        before = copy.deepcopy(other.outcome())
        with pytest.raises(CheckpointError, match=r"tree\['optimizer'\]: Adam refused its state"):
            other.resume(checkpointer)
    assert trees.same(other.outcome(), before)
