"""This package."""

from __future__ import annotations

import os

from benchmarks.peers.task import Contender, Task
from benchmarks.protocol import Unavailable
from lucid_gpu import Parameter, optim
from lucid_gpu.execution import building


class Ours(Contender):
    """One optimizer of :mod:`lucid_gpu.optim`.

    Args:
        task: the arrays and the rule.
        mode: what steps on the CPU: ``LUCID_GPU_CPU``.

    Raises:
        Unavailable: ``mode`` is ``"compiled"``, and there is no compiler.
    """

    def __init__(self, task: Task, mode: str = "numpy") -> None:
        if mode == "compiled" and building.compiler() is None:
            raise Unavailable("no C++ compiler was found")
        super().__init__(task)
        self._mode = mode
        self._params = [Parameter(array) for array in task.params]
        self.use_gradients(0)
        cls = getattr(optim, task.rule.optimizer)
        self._optimizer = cls(task.groups(self._params), **task.rule.options)

    def step(self) -> None:
        """Take one step."""
        if self.task.device == "cpu":  # setting a variable takes longer than a launch
            os.environ["LUCID_GPU_CPU"] = self._mode
        self._optimizer.step()

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self.task.grads[which], strict=True):
            param.grad = grad
