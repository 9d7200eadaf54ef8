"""Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Adagrad(FusedOptimizer):
    r"""Gradients divided by the root of the sum of all their squares so far.

    With the gradient :math:`g` (negated for ``maximize``; with weight decay :math:`g + λθ`), at
    the :math:`t`-th step of a parameter::

        s ← s + g·g
        θ ← θ − ((η / (1 + (t − 1)·lr_decay)) · g) / (sqrt(s) + ε)

    State: ``step`` (int) and ``sum`` (s), of the shape of its parameter, which begins with
    ``initial_accumulator_value`` of its group.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        lr_decay: ≥ 0; how fast the learning rate falls with the number of steps.
        weight_decay: λ ≥ 0.
        initial_accumulator_value: ≥ 0; what s begins with.
        eps: ε ≥ 0, added to the denominator.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Adagrad([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Source: Duchi, Hazan & Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
    Optimization", JMLR 12, 2011.
    """

    kernel = "adagrad"
    functor = "Adagrad"
    slots = ("sum",)
    scratch = 2
    decay = "l2"

    class Scalars(NamedTuple):
        """Constants of one step."""

        step_size: float
        eps: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "lr_decay", "weight_decay")
        checks.nonnegative(options, "initial_accumulator_value", "eps")

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the one slot."""
        return Adagrad.slots

    @staticmethod
    def fills(options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what the sum begins with."""
        return {"sum": options["initial_accumulator_value"]}

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Adagrad.Scalars:
        """Return the constants of a step."""
        step_size = options["lr"] / (1 + (t - 1) * options["lr_decay"])
        return Adagrad.Scalars(step_size, options["eps"])

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, s: Any, a: Any, b: Any) -> None:
        """Update a block in place; ``a`` and ``b`` are scratch."""
        np.multiply(g, g, out=a)
        s += a
        d = np.sqrt(s, out=a)
        d += k.eps
        np.multiply(k.step_size, g, out=b)
        b /= d
        param -= b
