"""RAdam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class RAdam(FusedOptimizer):
    r"""Adam that follows its momentum alone while its variance rests on few gradients.

    With the gradient :math:`g` (negated for ``maximize``; with L2 decay :math:`g + λθ`), at the
    :math:`t`-th step of a parameter, after ``θ ← θ(1 − ηλ)`` with decoupled decay::

        m ← m + (1 − β1)(g − m)
        v ← β2·v + ((1 − β2)·g)·g
        u = (m / (1 − β1ᵗ)) · η
        u ← (u · ((1 / (sqrt(v) + ε)) · sqrt(1 − β2ᵗ))) · R        where ρ > 5
        θ ← θ − u

    with ``ρ∞ = 2/(1 − β2) − 1``, ``ρ = ρ∞ − 2tβ2ᵗ/(1 − β2ᵗ)`` and
    ``R = sqrt((ρ − 4)(ρ − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ))``.

    State: ``step`` (int), ``exp_avg`` (m) and ``exp_avg_sq`` (v), both of the shape of their
    parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1 and β2 of the moments, each in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        decoupled_weight_decay: True decays the parameter itself instead of adding λθ to the
            gradient.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = RAdam([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.8000'

    Source: Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond",
    arXiv:1908.03265, whose threshold is ρ > 4; that of 5 is PyTorch's.
    """

    kernel = "radam"
    functor = "RAdam"
    slots = ("exp_avg", "exp_avg_sq")
    scratch = 2

    class Scalars(NamedTuple):
        """Constants of one step."""

        c1: float
        beta2: float
        c2: float
        correction1: float
        root2: float
        eps: float
        lr: float
        rectification: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay")
        checks.decay_rates(options, "betas", 2)
        checks.switches(options, "decoupled_weight_decay")

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the two moments."""
        return RAdam.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> RAdam.Scalars:
        """Return the constants of a step."""
        lr, (beta1, beta2), eps = options["lr"], options["betas"], options["eps"]
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        limit = 2 / (1 - beta2) - 1
        rho = limit - 2 * t * beta2**t / correction2
        rectification = 0.0
        if rho > 5:
            rectification = math.sqrt(
                (rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)
            )
        root2 = math.sqrt(correction2)
        return RAdam.Scalars(
            1 - beta1, beta2, 1 - beta2, correction1, root2, eps, lr, rectification
        )

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, m: Any, v: Any, a: Any, b: Any) -> None:
        """Update a block in place; ``a`` and ``b`` are scratch."""
        np.subtract(g, m, out=b)
        b *= k.c1
        m += b
        np.multiply(k.c2, g, out=b)
        b *= g
        v *= k.beta2
        v += b

        u = np.divide(m, k.correction1, out=a)
        u *= k.lr
        if k.rectification != 0:
            d = np.sqrt(v, out=b)
            d += k.eps
            np.divide(1, d, out=d)
            d *= k.root2
            u *= d
            u *= k.rectification
        param -= u
