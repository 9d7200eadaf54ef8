"""Makes the class for PyTorch of a fused optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from inspect import Parameter as Argument
from typing import Any

from lucid_gpu.optim import FusedOptimizer
from lucid_gpu.torch.engine import Engine
from lucid_gpu.torch.optimizer import TorchOptimizer, tensors_of
from lucid_gpu.torch.options import EXECUTION

BELONGS_ELSEWHERE = ("state_device",)
"""Keywords of fused optimizers that are not offered: state is in memory of PyTorch."""


def torch_class(rule: type[FusedOptimizer], module: str) -> type[TorchOptimizer]:
    """Return the subclass of ``torch.optim.Optimizer`` that steps by the rule of a class.

    Args:
        rule: an optimizer of :mod:`lucid_gpu.optim`.
        module: where the class will be found by its name.
    """
    engine = type(rule.__name__, (Engine, rule), {"__module__": __name__})
    own = {
        "engine_class": engine,
        "__signature__": _signature(rule),
        "__doc__": _doc(rule),
        "__module__": module,
        **{name: _handed_on(name, method) for name, method in _methods(rule).items()},
    }
    return type(rule.__name__, (TorchOptimizer,), own)


def _signature(rule: type[FusedOptimizer]) -> inspect.Signature:
    """Return the arguments of a rule and those that say how PyTorch runs a step."""
    kept = [
        each
        for name, each in inspect.signature(rule).parameters.items()
        if name not in BELONGS_ELSEWHERE
    ]
    more = [Argument(name, Argument.KEYWORD_ONLY, default=None) for name in EXECUTION]
    return inspect.Signature([*kept, *more])


def _doc(rule: type[FusedOptimizer]) -> str:
    return (
        f":class:`lucid_gpu.optim.{rule.__name__}` for parameters of PyTorch.\n\n"
        "    Formulas, options and bounds are there. Options are spelled as in ``torch.optim``:\n"
        '    ``amsgrad=True`` is PyTorch\'s (``"raw"`` there), ``lr`` may be a tensor, and\n'
        "    ``foreach`` and ``fused`` are taken, and every step is fused; ``fused=False`` has\n"
        "    ``torch.amp.GradScaler`` unscale gradients ahead of it, for who clips them then.\n"
        "    ``capturable=True`` and ``differentiable=True`` are refused.\n"
    )


def _methods(rule: type[FusedOptimizer]) -> dict[str, Any]:
    """Return what a rule offers its users beside stepping, such as ``averages`` of ASGD."""
    return {
        name: value
        for cls in reversed(rule.__mro__)
        for name, value in vars(cls).items()
        if inspect.isfunction(value)
        and not name.startswith("_")
        and not hasattr(FusedOptimizer, name)
    }


def _handed_on(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def call(self: TorchOptimizer, *args: Any, **kwargs: Any) -> Any:
        return tensors_of(self._call(name, *args, **kwargs))

    return call
