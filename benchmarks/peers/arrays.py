"""What one writes without an optimizer library, and the limit: a plain copy."""

from __future__ import annotations

from benchmarks.peers.task import LR, Contender, Task
from benchmarks.protocol import Unavailable

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
                "float32 g, float32 lr, float32 c1, float32 c2, float32 correction2, float32 eps",
                "float32 param, float32 m, float32 v",
                "m += c1 * (g - m); v += c2 * (g * g - v);"
                "param -= lr * m / (sqrt(v / correction2) + eps);",
                "adam_of_one_tensor",
                no_return=True,
            )
        else:
            self._kernel = kernel(
                "float32 g, float32 lr, float32 momentum",
                "float32 param, float32 m",
                "m = momentum * m + g; param -= lr * m;",
                "momentum_of_one_tensor",
                no_return=True,
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


LARGEST_COPY = 2 << 30
"""Bytes of the buffers that limits are measured with; more traffic is several copies."""


def parts(nbytes: int) -> list[int]:
    """Return the sizes of the copies that move some bytes through buffers of the largest size."""
    whole, rest = divmod(nbytes, LARGEST_COPY)
    return [*[LARGEST_COPY] * whole, rest]


SMALLEST_TRAFFIC = 64 << 20
"""Less than this stays in caches, which says nothing of memory."""


class Copy(Contender):
    """Copies as many bytes as a step moves: reads half of them and writes half.

    On a GPU only: a CPU copies more slowly than it updates in place, so a copy is no limit there.
    """

    def __init__(self, task: Task) -> None:
        if task.device == "cpu":
            raise Unavailable("a copy is no limit of what a CPU can do in place")
        if task.traffic < SMALLEST_TRAFFIC:
            raise Unavailable(f"less than {SMALLEST_TRAFFIC >> 20} MiB move: caches set the limit")
        super().__init__(task)
        self._parts = parts(task.traffic // 2)
        self._source = task.xp.zeros(max(self._parts), task.xp.uint8) + task.xp.uint8(1)
        self._target = task.xp.empty_like(self._source)

    def step(self) -> None:
        """Copy the bytes of one step."""
        stream = self.task.xp.cuda.get_current_stream()
        for nbytes in self._parts:
            self._target.data.copy_from_device_async(self._source.data, nbytes, stream)

    def use_gradients(self, which: int) -> None:
        """Do nothing: there are no gradients."""
