"""This package."""

from __future__ import annotations

from benchmarks.peers.task import Contender, Task
from lucid_gpu import Parameter, optim


class Ours(Contender):
    """One optimizer of :mod:`lucid_gpu.optim`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._params = [Parameter(array) for array in task.params]
        self.use_gradients(0)
        cls = getattr(optim, task.rule.optimizer)
        self._optimizer = cls(task.groups(self._params), **task.rule.options)

    def step(self) -> None:
        """Take one step."""
        self._optimizer.step()

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self.task.grads[which], strict=True):
            param.grad = grad
