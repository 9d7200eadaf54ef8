"""Steps of mixed precision: unscale, clip, AdamW, and the scale moved."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.peers.pytorch import load
from benchmarks.peers.task import LR, Contender, Task
from lucid_gpu import Parameter, set_cpu_code
from lucid_gpu.amp import GradScaler
from lucid_gpu.device import gpu
from lucid_gpu.execution import building
from lucid_gpu.optim import AdamW

MAX_NORM = 1.0
NEVER = 2**30


def _as(xp: Any, array: Any, dtype: Any) -> Any:
    return array if array.dtype == dtype else xp.asarray(array, dtype=dtype)


class Ours(Contender):
    """``GradScaler`` and ``AdamW(max_norm=…)`` of this package.

    Args:
        task: the arrays.
        dtype: of parameters and gradients.
        master: the option.
    """

    def __init__(self, task: Task, dtype: Any, master: str | None = None) -> None:
        super().__init__(task)
        with gpu.on(task.device):
            self._params = [Parameter(_as(task.xp, array, dtype)) for array in task.params]
            self._grads = [[_as(task.xp, g, dtype) for g in grads] for grads in task.grads]
        self.use_gradients(0)
        self._optimizer = AdamW(self._params, LR, max_norm=MAX_NORM, master=master)
        self._scaler = GradScaler(task.device, init_scale=1.0, growth_interval=NEVER)
        self._is_built = False

    def step(self) -> None:
        """Take one step; what the first one has built beside it is there for the next."""
        set_cpu_code("auto")
        self._scaler.scale(1.0)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if not self._is_built:
            building.wait()
            self._is_built = True

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self._grads[which], strict=True):
            param.grad = grad


class PyTorchTrio(Contender):
    """``unscale_``, ``clip_grad_norm_`` and fused ``AdamW`` of PyTorch.

    Args:
        task: the arrays.
        dtype: the name of PyTorch's dtype of parameters, gradients and moments.
    """

    def __init__(self, task: Task, dtype: str) -> None:
        super().__init__(task)
        self._torch = torch = load(task.device)
        own = getattr(torch, dtype)
        self._params = [torch.nn.Parameter(torch.from_dlpack(a).to(own)) for a in task.params]
        # What unscales and clips writes to gradients, which others share.
        self._grads = [[torch.from_dlpack(g).to(own).clone() for g in own_] for own_ in task.grads]
        self.use_gradients(0)
        self._optimizer = torch.optim.AdamW(self._params, LR, fused=True)
        kind = "cpu" if task.device == "cpu" else "cuda"
        self._scaler = torch.amp.GradScaler(kind, init_scale=1.0, growth_interval=NEVER)
        self._one = torch.ones(1, device=kind)

    def step(self) -> None:
        """Take one step."""
        self._scaler.scale(self._one)
        self._scaler.unscale_(self._optimizer)
        self._torch.nn.utils.clip_grad_norm_(self._params, MAX_NORM)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def use_gradients(self, which: int) -> None:
        """Take the gradients of one of the task's sets."""
        for param, grad in zip(self._params, self._grads[which], strict=True):
            param.grad = grad


BUILDERS = {
    "ours": lambda task: Ours(task, np.float32),
    "ours, bfloat16": lambda task: Ours(task, ml_dtypes.bfloat16),
    "ours, bfloat16, split": lambda task: Ours(task, ml_dtypes.bfloat16, "split"),
    "ours, bfloat16, no master": lambda task: Ours(task, ml_dtypes.bfloat16, "none"),
    "torch": lambda task: PyTorchTrio(task, "float32"),
    "torch, all bfloat16": lambda task: PyTorchTrio(task, "bfloat16"),
}
