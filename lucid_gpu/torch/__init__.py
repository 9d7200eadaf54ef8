"""Every fused optimizer of this package as a ``torch.optim.Optimizer``.

Each class that ``lucid_gpu.optim`` exports is here under its name, for parameters of PyTorch:
groups, hooks, ``zero_grad``, ``state_dict`` and ``load_state_dict`` are PyTorch's own, and so
schedulers, gradient scalers and trainers take it for one of theirs. Importing this module imports
PyTorch.

Example:
    >>> import torch
    >>> from lucid_gpu.torch import AdamW
    >>> model = torch.nn.Linear(3, 1)
    >>> optimizer = AdamW(model.parameters(), lr=1e-2)
    >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    >>> for _ in range(10):
    ...     optimizer.zero_grad()
    ...     model(torch.ones(8, 3)).square().mean().backward()
    ...     optimizer.step()
    ...     schedule.step()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_gpu import optim
from lucid_gpu.optim import FusedOptimizer
from lucid_gpu.torch.factory import torch_class
from lucid_gpu.torch.optimizer import TorchOptimizer

_rules = [getattr(optim, name) for name in optim.__all__]
_classes = {
    rule.__name__: torch_class(rule, __name__)
    for rule in _rules
    if isinstance(rule, type) and issubclass(rule, FusedOptimizer) and rule is not FusedOptimizer
}
globals().update(_classes)

__all__ = ["TorchOptimizer", *_classes]  # noqa: PLE0604 - names of classes

if TYPE_CHECKING:

    def __getattr__(name: str) -> type[TorchOptimizer]:
        """Tell type checkers what the names in ``__all__`` are, which are made above."""
