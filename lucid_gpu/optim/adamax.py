"""Adamax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Adamax(FusedOptimizer):
    r"""Adam by the infinity norm: divided by the largest gradient of late, not their mean square.

    With the gradient :math:`g` (negated for ``maximize``; with weight decay :math:`g + λθ`), at
    the :math:`t`-th step of a parameter::

        m ← m + (1 − β1)(g − m)
        n ← max(β2·n, |g| + ε)
        θ ← θ − ((η / (1 − β1ᵗ)) · m) / n

    State: ``step`` (int), ``exp_avg`` (m) and ``exp_inf`` (n), both of the shape of their
    parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1 of the moment and β2 of the norm, each in [0, 1).
        eps: ε ≥ 0, added to the magnitude of the gradient.
        weight_decay: λ ≥ 0.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Adamax([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, section 7.1,
    which has no ε; where it stands here is PyTorch's.
    """

    kernel = "adamax"
    functor = "Adamax"
    slots = ("exp_avg", "exp_inf")
    scratch = 1
    decay = "l2"

    class Scalars(NamedTuple):
        """Constants of one step."""

        c1: float
        beta2: float
        eps: float
        step_size: float

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay")
        checks.decay_rates(options, "betas", 2)

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the moment and the norm."""
        return Adamax.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Adamax.Scalars:
        """Return the constants of a step."""
        beta1, beta2 = options["betas"]
        return Adamax.Scalars(1 - beta1, beta2, options["eps"], options["lr"] / (1 - beta1**t))

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, m: Any, n: Any, a: Any) -> None:
        """Update a block in place; ``a`` is scratch."""
        np.subtract(g, m, out=a)
        a *= k.c1
        m += a
        size = np.abs(g, out=a)
        size += k.eps
        n *= k.beta2
        np.maximum(n, size, out=n)
        np.multiply(k.step_size, m, out=a)
        a /= n
        param -= a
