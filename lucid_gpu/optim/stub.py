"""OptimizerStub: an optimizer for training that follows no gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lucid_gpu.optim.core.optimizer import Optimizer, evaluate


class OptimizerStub(Optimizer):
    """An optimizer that updates nothing, for trainers that change weights themselves.

    Hooks, groups, ``zero_grad``, state dicts and learning-rate schedules work as for any other,
    so that a training loop need not know that its model learns without gradients.

    Args:
        params: parameters to keep in groups; none are needed.
        lr: a learning rate for the trainer to read and for schedules to write; no bound.

    Example:
        >>> optimizer = OptimizerStub()
        >>> optimizer.step(lambda: 0.25)
        0.25
        >>> optimizer.state_dict()
        {'state': {}, 'param_groups': []}
    """

    requires_parameters = False

    def __init__(self, params: Iterable[Any] = (), lr: float = 0.0) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Run the closure and update nothing.

        Returns:
            What ``closure`` returned; None without one.
        """
        return evaluate(closure)
