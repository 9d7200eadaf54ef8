"""This package."""

from __future__ import annotations

import os

from benchmarks.peers.task import Contender, Task
from lucid_gpu import Parameter, optim


class Ours(Contender):
    """One optimizer of :mod:`lucid_gpu.optim`.

    Args:
        task: the arrays and the rule.
        mode: what steps on the CPU. Compiled code is there from the start, as it is in training
            that lasts more than a moment.
    """

    def __init__(self, task: Task, mode: str = "compiled") -> None:
        super().__init__(task)
        self._mode = mode
        self._params = [Parameter(array) for array in task.params]
        self.use_gradients(0)
        cls = getattr(optim, task.rule.optimizer)
        self._optimizer = cls(task.groups(self._params), **task.rule.options)

    def step(self) -> None:
        """Take one step."""
        os.environ["LUCID_GPU_CPU"] = self._mode
        self._optimizer.step()

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self.task.grads[which], strict=True):
            param.grad = grad
