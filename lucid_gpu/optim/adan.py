"""Adan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Adan(FusedOptimizer):
    r"""Adaptive Nesterov momentum: moments of the gradient, of its change, and of both.

    With the gradient :math:`g` (negated for ``maximize``), the one before it :math:`g'`, and
    ``δ = g − g'``, which is 0 at the first step, at the :math:`t`-th step of a parameter::

        m ← m + (1 − β1)(g − m)
        q ← q + (1 − β2)(δ − q)
        n = β2·δ + g
        v ← β3·v + ((1 − β3)·n)·n
        d = sqrt(v) / sqrt(1 − β3ᵗ) + ε
        g' ← g
        θ ← θ − ((η / (1 − β1ᵗ)) · m) / d
        θ ← θ − ((ηβ2 / (1 − β2ᵗ)) · q) / d
        θ ← θ / (1 + ηλ)

    State: ``step`` (int), ``exp_avg`` (m), ``exp_avg_diff`` (q), ``exp_avg_sq`` (v) and
    ``previous_grad`` (g'), each of the shape of its parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1, β2 and β3, each in [0, 1). The paper's are one less these.
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Adan([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Source: Xie et al., "Adan: Adaptive Nesterov Momentum Algorithm for Faster Optimizing Deep
    Models", arXiv:2208.06677.
    """

    kernel = "adan"
    functor = "Adan"
    slots = ("exp_avg", "exp_avg_diff", "exp_avg_sq", "previous_grad")
    scratch = 2
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        later: float
        c1: float
        beta2: float
        c2: float
        beta3: float
        c3: float
        root3: float
        eps: float
        moment_size: float
        difference_size: float
        shrink: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay")
        checks.decay_rates(options, "betas", 3)

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the three moments and the gradient before."""
        return Adan.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Adan.Scalars:
        """Return the constants of a step."""
        lr, (beta1, beta2, beta3) = options["lr"], options["betas"]
        return Adan.Scalars(
            later=float(t > 1),
            c1=1 - beta1,
            beta2=beta2,
            c2=1 - beta2,
            beta3=beta3,
            c3=1 - beta3,
            root3=math.sqrt(1 - beta3**t),
            eps=options["eps"],
            moment_size=lr / (1 - beta1**t),
            difference_size=lr * beta2 / (1 - beta2**t),
            shrink=1 + lr * options["weight_decay"],
        )

    @staticmethod
    def update(
        k: Scalars,
        _: Any,
        /,
        param: Any,
        g: Any,
        m: Any,
        q: Any,
        v: Any,
        previous: Any,
        a: Any,
        b: Any,
    ) -> None:
        """Update a block in place; ``a`` and ``b`` are scratch."""
        delta = a
        if k.later != 0:
            np.subtract(g, previous, out=delta)
        else:
            delta.fill(0)
        np.subtract(g, m, out=b)
        b *= k.c1
        m += b
        np.subtract(delta, q, out=b)
        b *= k.c2
        q += b
        n = np.multiply(k.beta2, delta, out=a)
        n += g
        np.multiply(k.c3, n, out=b)
        b *= n
        v *= k.beta3
        v += b
        d = np.sqrt(v, out=b)
        d /= k.root3
        d += k.eps
        np.copyto(previous, g)
        np.multiply(k.moment_size, m, out=a)
        a /= d
        param -= a
        np.multiply(k.difference_size, q, out=a)
        a /= d
        param -= a
        param /= k.shrink
