"""The contenders: ours and whatever else steps the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.peers import arrays, optax, ours, pytorch
from benchmarks.peers.task import Contender, Task

__all__ = ["BUILDERS", "Contender", "Task", "names"]

BUILDERS: dict[str, Callable[[Task], Contender]] = {
    "ours": ours.Ours,
    "ours, NumPy": partial(ours.Ours, cpu_code="numpy"),
    "torch fused": pytorch.builder("fused"),
    "torch foreach": pytorch.builder("foreach"),
    "torch single": pytorch.builder("single"),
    "torch fused, graph": pytorch.builder("fused", in_graph=True),
    "torch foreach, graph": pytorch.builder("foreach", in_graph=True),
    "torch single, graph": pytorch.builder("single", in_graph=True),
    "optax, jit": optax.Optax,
    "array expressions": arrays.Expressions,
    "ElementwiseKernel": arrays.Elementwise,
    "limit": arrays.Copy,
}
"""How to make each contender. Called with a task; raises Unavailable where it cannot run."""

ON_GPU_ONLY = tuple(
    name for name in BUILDERS if "graph" in name or name in ("ElementwiseKernel", "limit")
)

ON_CPU_ONLY = ("ours, NumPy",)


def names(device: str) -> list[str]:
    """Return the contenders that make sense on a device, installed or not."""
    elsewhere = ON_GPU_ONLY if device == "cpu" else ON_CPU_ONLY
    return [name for name in BUILDERS if name not in elsewhere]
