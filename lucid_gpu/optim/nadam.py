"""NAdam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class NAdam(FusedOptimizer):
    r"""Adam with Nesterov's momentum, whose rate μ rises from step to step.

    With the gradient :math:`g` (negated for ``maximize``; with L2 decay :math:`g + λθ`), at the
    :math:`t`-th step of a parameter, after ``θ ← θ(1 − ηλ)`` with decoupled decay, with
    ``μ = β1(1 − 0.96^(tψ)/2)``, μ' the same of t + 1, and P, the product of all μ so far::

        P ← P·μ
        m ← m + (1 − β1)(g − m)
        v ← β2·v + ((1 − β2)·g)·g
        d = sqrt(v / (1 − β2ᵗ)) + ε
        θ ← θ − ((η(1 − μ) / (1 − P)) · g) / d
        θ ← θ − ((η·μ' / (1 − P·μ')) · m) / d

    State: ``step`` (int), ``mu_product`` (P, a float that begins with 1), ``exp_avg`` (m) and
    ``exp_avg_sq`` (v), both of the shape of their parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1 and β2 of the moments, each in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        momentum_decay: ψ ≥ 0; how fast μ approaches β1.
        decoupled_weight_decay: True decays the parameter itself instead of adding λθ to the
            gradient.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = NAdam([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.8944'

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop, 2016.
    """

    kernel = "nadam"
    functor = "NAdam"
    slots = ("exp_avg", "exp_avg_sq")
    scratch = 2
    carries = {"mu_product": 1.0}  # noqa: RUF012 - declared by the base class

    class Scalars(NamedTuple):
        """Constants of one step."""

        c1: float
        beta2: float
        c2: float
        correction2: float
        eps: float
        gradient_size: float
        moment_size: float

    def __init__(
        self,
        params: Any,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay", "momentum_decay")
        checks.decay_rates(options, "betas", 2)
        checks.switches(options, "decoupled_weight_decay")

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the two moments."""
        return NAdam.slots

    @staticmethod
    def scalars(
        options: Mapping[str, Any], t: int, carry: Mapping[str, float]
    ) -> tuple[NAdam.Scalars, dict[str, float]]:
        """Return the constants of a step, and the product of μ that it leaves."""
        lr, (beta1, beta2), psi = options["lr"], options["betas"], options["momentum_decay"]
        mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (i * psi)) for i in (t, t + 1))
        product = carry["mu_product"] * mu
        gradient_size = lr * (1 - mu) / (1 - product)
        moment_size = lr * mu_next / (1 - product * mu_next)
        c1, c2, correction2 = 1 - beta1, 1 - beta2, 1 - beta2**t
        own = NAdam.Scalars(c1, beta2, c2, correction2, options["eps"], gradient_size, moment_size)
        return own, {"mu_product": product}

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
        d = np.divide(v, k.correction2, out=b)
        np.sqrt(d, out=d)
        d += k.eps
        np.multiply(k.gradient_size, g, out=a)
        a /= d
        param -= a
        np.multiply(k.moment_size, m, out=a)
        a /= d
        param -= a
