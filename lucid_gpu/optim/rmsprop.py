"""RMSprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer
from lucid_gpu.optim.core.pytorch import Counterpart


class RMSprop(FusedOptimizer):
    r"""Gradients divided by a moving average of their magnitude.

    With the gradient :math:`g` (negated for ``maximize``; with weight decay :math:`g + λθ`)::

        v ← α·v + ((1 − α)·g)·g
        w = v                               centered: h ← h + (1 − α)(g − h), w = max(v − h·h, 0)
        d = sqrt(w) + ε                     eps_inside_sqrt: d = sqrt(w + ε)
        θ ← θ − (η·g) / d                   momentum: b ← μ·b + g/d, θ ← θ − η·b

    State: ``step`` (int), ``square_avg`` (v), if centered ``grad_avg`` (h) and, with momentum,
    ``momentum_buffer`` (b), each of the shape of its parameter.

    Where rounding leaves v − h·h below 0, as it does for a gradient that stays the same, its root
    would be NaN; the maximum with 0 changes nothing else.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        alpha: the decay rate α of the averages, in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        momentum: μ ≥ 0.
        centered: True divides by an estimate of the standard deviation instead.
        eps_inside_sqrt: True adds ε ahead of the root.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = RMSprop([w], lr=0.01)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Sources: Hinton, "Neural Networks for Machine Learning", lecture 6, 2012; centered: Graves,
    "Generating Sequences With Recurrent Neural Networks", arXiv:1308.0850.
    """

    kernel = "rmsprop"
    functor = "RMSprop"
    slots = ("square_avg", "grad_avg", "momentum_buffer")
    counterpart = Counterpart(lacks=("eps_inside_sqrt",))
    switches = {"centered": (False, True), "momentum": (False, True)}  # noqa: RUF012 - of the base
    scratch = 2

    decay = "l2"

    class Scalars(NamedTuple):
        """Constants of one step."""

        alpha: float
        c: float
        eps: float
        inside: float
        momentum: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        eps_inside_sqrt: bool = False,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "eps_inside_sqrt": eps_inside_sqrt,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay", "momentum")
        checks.rates(options, "alpha")
        checks.switches(options, "centered", "eps_inside_sqrt")

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choice of each switch."""
        return {"centered": options["centered"], "momentum": options["momentum"] != 0}

    @staticmethod
    def used_slots(variant: Any) -> tuple[str, ...]:
        """Return the slots of the switches that are on."""
        return tuple(
            name for name, is_on in zip(RMSprop.slots, (True, *variant), strict=True) if is_on
        )

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> RMSprop.Scalars:  # noqa: ARG004 - others' do
        """Return the constants of a step."""
        alpha, inside = options["alpha"], float(options["eps_inside_sqrt"])
        momentum, lr = options["momentum"], options["lr"]
        return RMSprop.Scalars(alpha, 1 - alpha, options["eps"], inside, momentum, lr)

    @staticmethod
    def update(
        k: Scalars,
        variant: Any,
        /,
        param: Any,
        g: Any,
        v: Any,
        first: Any,
        second: Any,
        s: Any,
        t: Any,
    ) -> None:
        """Update a block in place; ``s`` and ``t`` are scratch."""
        h = first
        b = second if variant.centered else first

        np.multiply(k.c, g, out=t)
        t *= g
        v *= k.alpha
        v += t
        w = v
        if variant.centered:
            np.subtract(g, h, out=t)
            t *= k.c
            h += t
            np.multiply(h, h, out=t)
            w = np.subtract(v, t, out=t)
            np.maximum(w, 0, out=w)
        if k.inside != 0:
            w = np.add(w, k.eps, out=t)
        d = np.sqrt(w, out=t)
        if k.inside == 0:
            d += k.eps
        u = s
        if variant.momentum:
            b *= k.momentum
            b += np.divide(g, d, out=s)
            np.multiply(k.lr, b, out=u)
        else:
            np.multiply(k.lr, g, out=u)
            u /= d
        param -= u
