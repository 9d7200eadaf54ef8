"""What contenders are given: the same arrays, to step by the same rule."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from benchmarks.protocol import Unavailable
from benchmarks.workloads import Rule, Workload
from lucid_gpu import Parameter, optim
from lucid_gpu.device import gpu

LR = 1e-3
SEED = 2026


class Task:
    """Arrays and a rule. All contenders step the same parameters, each with state of its own.

    Args:
        workload: the tensors.
        rule: the optimizer and its options.
        home: the device of the arrays.
        sets: how many sets of gradients there are to change between.
    """

    def __init__(self, workload: Workload, rule: Rule, home: str, sets: int = 1) -> None:
        self.workload, self.rule, self.device = workload, rule, home
        self.xp = gpu.module(home)
        with gpu.on(home):
            random = self.xp.random.default_rng(SEED)
            self.params = [self._random(random, shape) for shape in workload.shapes]
            self.grads = [[self._random(random, s) for s in workload.shapes] for _ in range(sets)]

    @property
    def traffic(self) -> int:
        """How many bytes a step must move: each array read once, all but the gradient written."""
        cls = getattr(optim, self.rule.optimizer)
        optimizer = cls([Parameter([0.0])], **self.rule.options)
        slots = cls.used_slots(optimizer.variant_of(optimizer.param_groups[0]))
        return 4 * (3 + 2 * len(slots)) * self.workload.parameters

    def groups(self, tensors: list[Any]) -> list[dict[str, Any]]:
        """Return tensors as group dicts, each with a learning rate of its own."""
        return [
            {"params": group, "lr": LR * (1 + number / 100)}
            for number, group in enumerate(self.workload.dealt(tensors))
        ]

    @staticmethod
    def _random(random: Any, shape: tuple[int, ...]) -> Any:
        return random.standard_normal(shape, dtype=np.float32)


class Contender(ABC):
    """Something that steps the tensors of a task.

    Args:
        task: the arrays and the rule; the first set of gradients is taken at once.

    Attributes:
        copied: bytes of parameters and gradients that it had to copy for itself.
    """

    copied = 0

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def step(self) -> None:
        """Take one step; on a GPU, launch it."""

    @abstractmethod
    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets from now on."""

    def drop_a_gradient(self, is_dropped: bool) -> None:  # noqa: ARG002 - where there is one
        """Take the gradient of the tensor in the middle away, or give it back.

        Raises:
            Unavailable: this contender has no notion of a missing gradient.
        """
        raise Unavailable("gradients cannot be missing here")

    def synchronize(self) -> None:
        """Wait until what was launched is done."""
        if self.task.device != "cpu":
            self.task.xp.cuda.runtime.deviceSynchronize()
