"""LARS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class LARS(FusedOptimizer):
    r"""Layerwise adaptive rate scaling: momentum, with gradients as long as parameters are.

    With the gradient :math:`g` (negated for ``maximize``), where the norms are of the whole
    parameter and c is the trust coefficient::

        r = c·‖θ‖ / (‖g‖ + λ·‖θ‖ + ε)              1 if either norm is 0 or NaN
        h = (g + λ·θ)·r
        b ← h                                      at the first step with momentum
        b ← μ·b + (1 − τ)·h                        from then on
        θ ← θ − η·b                                nesterov: θ ← θ − η·(h + μ·b)

    Without momentum there is no ``b`` and ``θ ← θ − η·h``. The norms are roots of sums of squares
    in float64, added in one order on every device; r is rounded once. ``optax.lars`` is another
    form: its r is that of g + λθ, and η is multiplied ahead of the momentum.

    State: ``step`` (int) and, with momentum, ``momentum_buffer`` (b), of the shape of its
    parameter.

    A step is two launches for each GPU and dtype: one that measures, and one that moves the
    parameters.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of any shape.
        lr: the learning rate η ≥ 0.
        momentum: μ ≥ 0.
        dampening: τ, a finite number.
        weight_decay: λ ≥ 0.
        nesterov: True looks ahead along the momentum; needs ``momentum`` > 0 and no dampening.
        trust_coefficient: c ≥ 0. None takes 1 for r: for biases and the parameters of
            normalization, in a group of their own.
        eps: ε ≥ 0.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([3.0, 4.0])
        >>> optimizer = LARS([w], lr=1.0, trust_coefficient=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f} {w.numpy()[1]:.4f}"
        '2.7000 3.6000'

    Source: You, Gitman & Ginsburg, "Large Batch Training of Convolutional Networks",
    arXiv:1708.03888.
    """

    kernel = "lars"
    functor = "Lars"
    slots = ("momentum_buffer",)
    switches = {  # noqa: RUF012 - declared by the base class
        "momentum": ("none", "heavy_ball", "nesterov"),
        "adapts": (False, True),
    }
    sums = ("param_sq", "grad_sq")
    scratch = 2
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        momentum: float
        damping: float
        l2: float
        trust: float
        eps: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        trust_coefficient: float | None = 1e-3,
        eps: float = 0.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "momentum", "weight_decay", "eps")
        checks.finite(options, "dampening")
        checks.switches(options, "nesterov")
        if options["trust_coefficient"] is not None:
            checks.nonnegative(options, "trust_coefficient")
        if options["nesterov"] and not (options["momentum"] > 0 and options["dampening"] == 0):
            raise ValueError(
                "nesterov needs momentum > 0 and dampening 0, not "
                f"momentum {options['momentum']!r} and dampening {options['dampening']!r}"
            )

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choice of each switch."""
        momentum = "nesterov" if options["nesterov"] else "heavy_ball"
        return {
            "momentum": momentum if options["momentum"] else "none",
            "adapts": options["trust_coefficient"] is not None,
        }

    @staticmethod
    def used_slots(variant: Any) -> tuple[str, ...]:
        """Return the buffer if there is momentum."""
        return () if variant.momentum == "none" else LARS.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> LARS.Scalars:  # noqa: ARG004 - others' do
        """Return the constants of a step."""
        momentum, damping = options["momentum"], 1 - options["dampening"]
        l2, trust = options["weight_decay"], options["trust_coefficient"]
        return LARS.Scalars(
            momentum, damping, l2, 0.0 if trust is None else trust, options["eps"], options["lr"]
        )

    @staticmethod
    def first_scalars(options: Mapping[str, Any], t: int) -> LARS.Scalars:
        """Return the constants of the step for which b was made: 1 − τ counts as 1, so b ← h."""
        return LARS.scalars(options, t)._replace(damping=1.0)

    @staticmethod
    def measure(
        _: Scalars, __: Any, /, param: Any, g: Any, _b: Any, theta: Any, own: Any, *_s: Any
    ) -> None:
        """Fill ``theta`` and ``own`` with what is measured of a block: parameter and gradient."""
        np.copyto(theta, param)
        np.copyto(own, g)

    @staticmethod
    def finish(k: Scalars, variant: Any, /, totals: Sequence[float]) -> float:
        """Return r."""
        param, g = map(math.sqrt, totals)
        if not (variant.adapts and param > 0 and g > 0):
            return 1.0
        return float(k.trust) * param / ((g + float(k.l2) * param) + float(k.eps))

    @staticmethod
    def update(
        k: Scalars, variant: Any, /, param: Any, g: Any, b: Any, ratio: Any, s: Any, t: Any
    ) -> None:
        """Update a block in place; ``s`` and ``t`` are scratch."""
        h = g
        if k.l2 != 0:
            np.multiply(k.l2, param, out=s)
            h = np.add(h, s, out=s)
        h = np.multiply(h, ratio, out=s)
        if variant.momentum != "none":
            b *= k.momentum
            np.multiply(k.damping, h, out=t)
            b += t
        if variant.momentum == "heavy_ball":
            h = b
        if variant.momentum == "nesterov":
            np.multiply(k.momentum, b, out=t)
            h += t
        np.multiply(k.lr, h, out=t)
        param -= t
