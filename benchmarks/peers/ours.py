"""This package."""

from __future__ import annotations

from benchmarks.peers.task import Contender, Task
from lucid_gpu import Parameter, optim, set_cpu_code
from lucid_gpu.execution import building


class Ours(Contender):
    """One optimizer of :mod:`lucid_gpu.optim`.

    Args:
        task: the arrays and the rule.
        cpu_code: what steps on the CPU, as :func:`lucid_gpu.set_cpu_code` takes it.
    """

    def __init__(self, task: Task, cpu_code: str = "auto") -> None:
        super().__init__(task)
        self._cpu_code = cpu_code
        self._is_built = False
        self._params = [Parameter(array) for array in task.params]
        self.use_gradients(0)
        cls = getattr(optim, task.rule.optimizer)
        self._optimizer = cls(task.groups(self._params), **task.rule.options)

    def step(self) -> None:
        """Take one step; what the first one has built beside it is there for the next."""
        set_cpu_code(self._cpu_code)
        self._optimizer.step()
        if not self._is_built:
            building.wait()
            self._is_built = True

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self.task.grads[which], strict=True):
            param.grad = grad

    def drop_a_gradient(self, is_dropped: bool) -> None:
        """Take the gradient of the tensor in the middle away, or give it back."""
        middle = len(self._params) // 2
        self._params[middle].grad = None if is_dropped else self.task.grads[0][middle]
