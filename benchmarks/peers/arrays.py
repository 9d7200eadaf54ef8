"""What one writes without an optimizer library, and the limit: a plain copy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.peers.task import LR, Contender, Task
from benchmarks.protocol import Unavailable
from lucid_gpu.execution.cpu import thread_count

BETA1, BETA2, EPS, MOMENTUM = 0.9, 0.999, 1e-8, 0.9


class _PerTensor(Contender):
    """Steps one tensor after the other by a rule without switches."""

    def __init__(self, task: Task) -> None:
        if task.rule.name not in ("Adam", "SGD with momentum"):
            raise Unavailable("written for Adam and for SGD with momentum, without switches")
        super().__init__(task)
        self._is_adam = task.rule.optimizer == "Adam"
        self._m = [self.task.xp.zeros_like(array) for array in task.params]
        self._v = [self.task.xp.zeros_like(array) for array in task.params] if self._is_adam else []
        self._steps = 0
        self.use_gradients(0)

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        self._grads = self.task.grads[which]


class Expressions(_PerTensor):
    """The textbook's formulas as array expressions."""

    def step(self) -> None:
        """Take one step."""
        self._steps += 1
        update = self._adam if self._is_adam else self._momentum
        for i in range(len(self._grads)):
            update(i)

    def _adam(self, i: int) -> None:
        param, grad = self.task.params[i], self._grads[i]
        m = BETA1 * self._m[i] + (1 - BETA1) * grad
        v = BETA2 * self._v[i] + (1 - BETA2) * grad**2
        corrected_m = m / (1 - BETA1**self._steps)
        corrected_v = v / (1 - BETA2**self._steps)
        param -= LR * corrected_m / (self.task.xp.sqrt(corrected_v) + EPS)
        self._m[i], self._v[i] = m, v

    def _momentum(self, i: int) -> None:
        param = self.task.params[i]
        self._m[i] = MOMENTUM * self._m[i] + self._grads[i]
        param -= LR * self._m[i]


class Elementwise(_PerTensor):
    """One ``cupy.ElementwiseKernel``, launched for each tensor."""

    def __init__(self, task: Task) -> None:
        if task.device == "cpu":
            raise Unavailable("cupy.ElementwiseKernel needs a GPU")
        super().__init__(task)
        kernel = self.task.xp.ElementwiseKernel
        if self._is_adam:
            self._kernel = kernel(
                "T g, T lr, T c1, T c2, T correction2, T eps",
                "T param, T m, T v",
                "m += c1 * (g - m); v += c2 * (g * g - v);"
                "param -= lr * m / (sqrt(v / correction2) + eps);",
                "adam_of_one_tensor",
            )
        else:
            self._kernel = kernel(
                "T g, T lr, T momentum",
                "T param, T m",
                "m = momentum * m + g; param -= lr * m;",
                "momentum_of_one_tensor",
            )

    def step(self) -> None:
        """Take one step."""
        self._steps += 1
        params = self.task.params
        if self._is_adam:
            lr = LR / (1 - BETA1**self._steps)
            correction2 = 1 - BETA2**self._steps
            for g, param, m, v in zip(self._grads, params, self._m, self._v, strict=True):
                self._kernel(g, lr, 1 - BETA1, 1 - BETA2, correction2, EPS, param, m, v)
        else:
            for g, param, m in zip(self._grads, params, self._m, strict=True):
                self._kernel(g, LR, MOMENTUM, param, m)


LARGEST_COPY, LARGEST_COPY_ON_GPU = 128 << 20, 2 << 30
"""Bytes of the array that :class:`Copy` copies; more traffic is several copies."""

SMALLEST_TRAFFIC = 64 << 20
"""Less than this stays in caches, which says nothing of memory."""


class Copy(Contender):
    """Copies as many bytes as a step moves: reads half of them and writes half."""

    def __init__(self, task: Task) -> None:
        if task.traffic < SMALLEST_TRAFFIC:
            raise Unavailable(f"less than {SMALLEST_TRAFFIC >> 20} MiB move: caches set the limit")
        super().__init__(task)
        half = task.traffic // 2
        largest = LARGEST_COPY if task.device == "cpu" else LARGEST_COPY_ON_GPU
        self._whole, rest = divmod(half, largest)
        nbytes = min(half, largest)
        self._source = task.xp.zeros(nbytes, np.uint8) + 1
        self._target = task.xp.empty_like(self._source)
        self._rest = rest if self._whole else nbytes
        self._pool = ThreadPoolExecutor(thread_count()) if task.device == "cpu" else None

    def step(self) -> None:
        """Copy the bytes of one step."""
        for nbytes in (*[len(self._source)] * self._whole, self._rest):
            if self._pool is None:
                self._copy_on_device(nbytes)
            else:
                self._copy_on_threads(nbytes, self._pool)

    def use_gradients(self, which: int) -> None:
        """Do nothing: there are no gradients."""

    def _copy_on_device(self, nbytes: int) -> None:
        stream: Any = self.task.xp.cuda.get_current_stream()
        self._target.data.copy_from_device_async(self._source.data, nbytes, stream)

    def _copy_on_threads(self, nbytes: int, pool: ThreadPoolExecutor) -> None:
        bounds = np.linspace(0, nbytes, thread_count() + 1, dtype=np.int64).tolist()
        parts = [slice(*pair) for pair in pairwise(bounds)]
        list(pool.map(lambda part: np.copyto(self._target[part], self._source[part]), parts))
