"""Lion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Lion(FusedOptimizer):
    r"""Evolved sign momentum: every element moves by the learning rate, up or down.

    With the gradient :math:`g` (negated for ``maximize``), after ``θ ← θ(1 − ηλ)``::

        c = β1·m + (1 − β1)·g
        m ← β2·m + (1 − β2)·g
        θ ← θ − η·sign(c)

    The sign of NaN is NaN.

    State: ``step`` (int) and ``exp_avg`` (m), of the shape of its parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0: three to ten times less than Adam's.
        betas: the rates β1 and β2, each in [0, 1).
        weight_decay: λ ≥ 0, decoupled: three to ten times more than AdamW's.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Lion([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", arXiv:2302.06675.
    """

    kernel = "lion"
    functor = "Lion"
    slots = ("exp_avg",)
    scratch = 2
    decay = "decoupled"

    class Scalars(NamedTuple):
        """Constants of one step."""

        beta1: float
        c1: float
        beta2: float
        c2: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "weight_decay")
        checks.decay_rates(options, "betas", 2)

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the momentum."""
        return Lion.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Lion.Scalars:  # noqa: ARG004 - others' do
        """Return the constants of a step."""
        beta1, beta2 = options["betas"]
        return Lion.Scalars(beta1, 1 - beta1, beta2, 1 - beta2, options["lr"])

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, m: Any, a: Any, b: Any) -> None:
        """Update a block in place; ``a`` and ``b`` are scratch."""
        c = np.multiply(k.beta1, m, out=a)
        np.multiply(k.c1, g, out=b)
        c += b
        np.multiply(k.c2, g, out=b)
        m *= k.beta2
        m += b
        np.sign(c, out=c)
        c *= k.lr
        param -= c
