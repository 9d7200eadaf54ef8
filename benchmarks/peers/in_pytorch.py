"""This package inside PyTorch: :mod:`lucid_gpu.torch` on the parameters of PyTorch's peers."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.peers.pytorch import PyTorch
from benchmarks.peers.task import Task
from lucid_gpu import set_cpu_code
from lucid_gpu.execution import building


class InPyTorch(PyTorch):
    """One optimizer of :mod:`lucid_gpu.torch`."""

    def __init__(self, task: Task) -> None:
        super().__init__(task, kind="single", in_graph=False)
        self._is_built = False

    def step(self) -> None:
        """Take one step; what the first one has built beside it is there for the next."""
        set_cpu_code("auto")
        super().step()
        if not self._is_built:
            building.wait()
            self._is_built = True

    def _make(self, cls: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> Any:
        return getattr(importlib.import_module("lucid_gpu.torch"), cls.__name__)(groups, **options)
