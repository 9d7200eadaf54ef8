"""LAMB."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class LAMB(FusedOptimizer):
    r"""Layerwise adaptive moments: Adam whose step is as long as a parameter is, times η.

    With the gradient :math:`g` (negated for ``maximize``), at the :math:`t`-th step of a parameter,
    where the norms are of the whole parameter::

        m ← β1·m + (1 − β1)·g                      without grad_averaging: m ← β1·m + g
        v ← β2·v + ((1 − β2)·g)·g
        u = (m / (1 − β1ᵗ)) / (sqrt(v / (1 − β2ᵗ)) + ε) + λ·θ
        r = ‖θ‖ / ‖u‖                              1 if either norm is 0 or NaN
        θ ← θ − (η·r)·u

    Without ``bias_correction``, 1 stands for ``1 − β1ᵗ`` and ``1 − β2ᵗ``. Where λ is 0, r is 1 too
    unless ``always_adapt``. The norms are roots of sums of squares in float64, added in one order
    on every device; η·r is rounded once. Where the moments are stored in bfloat16, ‖u‖ is that
    of the moments as computed, and θ moves by the moments as stored.

    Gradients are clipped by the norm of all of them with ``max_norm`` of the frame: NVLAMB is
    ``always_adapt=True, max_norm=1.0``.

    State: ``step`` (int), ``exp_avg`` (m) and ``exp_avg_sq`` (v), each of the shape of its
    parameter.

    A step is two launches for each GPU and dtype: one that changes the moments and measures, and
    one that moves the parameters.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of any shape.
        lr: the learning rate η ≥ 0.
        betas: the rates β1 and β2, each in [0, 1).
        eps: ε ≥ 0.
        weight_decay: λ ≥ 0; it is not scaled by the learning rate alone but by η·r.
        bias_correction: False leaves out the corrections.
        grad_averaging: False adds the whole gradient to m.
        always_adapt: True takes r where λ is 0, too, as NVLAMB and optax do; apex does not.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([3.0, 4.0])
        >>> optimizer = LAMB([w], lr=0.1, weight_decay=0.0, always_adapt=True)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f} {w.numpy()[1]:.4f}"
        '2.6464 3.6464'

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
    arXiv:1904.00962, with φ the identity.
    """

    kernel = "lamb"
    functor = "Lamb"
    slots = ("exp_avg", "exp_avg_sq")
    switches = {"adapts": (False, True)}  # noqa: RUF012 - declared by the base class
    sums = ("param_sq", "update_sq")
    slots_move_first = True
    scratch = 2
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        beta1: float
        c1: float
        beta2: float
        c2: float
        correction1: float
        correction2: float
        eps: float
        l2: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        bias_correction: bool = True,
        grad_averaging: bool = True,
        always_adapt: bool = False,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "grad_averaging": grad_averaging,
            "always_adapt": always_adapt,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay")
        checks.decay_rates(options, "betas", 2)
        checks.switches(options, "bias_correction", "grad_averaging", "always_adapt")

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choice of each switch."""
        return {"adapts": options["always_adapt"] or options["weight_decay"] != 0}

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the two moments."""
        return LAMB.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> LAMB.Scalars:
        """Return the constants of a step."""
        beta1, beta2 = options["betas"]
        c1 = 1 - beta1 if options["grad_averaging"] else 1.0
        corrected = options["bias_correction"]
        correction1, correction2 = (1 - beta1**t, 1 - beta2**t) if corrected else (1.0, 1.0)
        eps, l2, lr = options["eps"], options["weight_decay"], options["lr"]
        return LAMB.Scalars(beta1, c1, beta2, 1 - beta2, correction1, correction2, eps, l2, lr)

    @staticmethod
    def measure(
        k: Scalars,
        _: Any,
        /,
        param: Any,
        g: Any,
        m: Any,
        v: Any,
        theta: Any,
        u: Any,
        a: Any,
        _b: Any,
    ) -> None:
        """Update the moments of a block; ``theta`` and ``u`` are measured, the rest is scratch."""
        m *= k.beta1
        np.multiply(k.c1, g, out=a)
        m += a
        np.multiply(k.c2, g, out=a)
        a *= g
        v *= k.beta2
        v += a
        np.copyto(theta, param)
        LAMB.direction(k, param, m, v, u, a)

    @staticmethod
    def finish(k: Scalars, variant: Any, /, totals: Sequence[float]) -> float:
        """Return η·r."""
        param, u = map(math.sqrt, totals)
        lr = float(k.lr)
        return lr * (param / u) if variant.adapts and param > 0 and u > 0 else lr

    @staticmethod
    def update(
        k: Scalars, _: Any, /, param: Any, _g: Any, m: Any, v: Any, size: Any, u: Any, a: Any
    ) -> None:
        """Move a block in place; ``u`` and ``a`` are scratch."""
        LAMB.direction(k, param, m, v, u, a)
        u *= size
        param -= u

    @staticmethod
    def direction(k: Scalars, param: Any, m: Any, v: Any, u: Any, a: Any) -> None:
        """Fill ``u``; ``a`` is scratch."""
        np.divide(v, k.correction2, out=a)
        np.sqrt(a, out=a)
        a += k.eps
        np.divide(m, k.correction1, out=u)
        u /= a
        if k.l2 != 0:
            np.multiply(k.l2, param, out=a)
            u += a
