"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import DECAYS, FusedOptimizer, decay_kind


class SGD(FusedOptimizer):
    r"""Stochastic gradient descent, with momentum, Nesterov's variant and weight decay.

    With the gradient :math:`g` (negated for ``maximize``; with L2 decay :math:`g + λθ`)::

        b ← g                                  at the first step of a parameter; see dampen_first
        b ← μ·b + (1 − τ)·g                    from then on
        θ ← θ(1 − ηλ)                          decoupled decay only
        θ ← θ − η·b                            nesterov: θ ← θ − η·(g + μ·b)

    Without momentum there is no ``b`` and ``θ ← θ − η·g``.

    State: ``step`` (int) and, with momentum, ``momentum_buffer`` (b), of the shape and dtype of
    its parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; float32 or float64 arrays
            of any shape.
        lr: the learning rate η ≥ 0.
        momentum: μ ≥ 0.
        dampening: τ, a finite number.
        weight_decay: λ ≥ 0.
        nesterov: True looks ahead along the momentum; needs ``momentum`` > 0 and no dampening.
        decoupled_weight_decay: True decays the parameter itself instead of adding λθ to the
            gradient.
        maximize: True follows the gradient upwards.
        dampen_first: True starts from ``b = 0`` and dampens the first gradient like the others,
            so that with ``dampening=momentum`` b is a moving average: ``b ← μ·b + (1 − μ)·g``.
        state_device: ``"host"`` keeps the state in host memory; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = SGD([w], lr=0.1, momentum=0.9)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.8000'

    Sources: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964;
    Sutskever et al., "On the importance of initialization and momentum in deep learning", 2013.
    """

    kernel = "sgd"
    functor = "SGD"
    slots = ("momentum_buffer",)
    switches = {  # noqa: RUF012 - declared by the base class
        "momentum": ("none", "heavy_ball", "nesterov"),
        "decay": DECAYS,
        "maximize": (False, True),
    }
    scratch = 2

    class Scalars(NamedTuple):
        """Constants of one step."""

        weight_decay: float
        momentum: float
        damping: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        dampen_first: bool = False,
        state_device: str | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "dampen_first": dampen_first,
        }
        super().__init__(params, defaults, state_device)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "momentum", "weight_decay")
        checks.finite(options, "dampening")
        checks.switches(options, "nesterov", "decoupled_weight_decay", "maximize", "dampen_first")
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
            "decay": decay_kind(options),
            "maximize": options["maximize"],
        }

    @staticmethod
    def used_slots(variant: Any) -> int:
        """Return 1 with momentum, else 0."""
        return 0 if variant.momentum == "none" else 1

    @classmethod
    def scalars(cls, options: Mapping[str, Any], step: int) -> Scalars:
        """Return the constants of a step. At the first, b = 0 and 1 − τ counts as 1: b ← g."""
        lr, decay, momentum = options["lr"], options["weight_decay"], options["momentum"]
        if options["decoupled_weight_decay"]:
            decay = 1 - lr * decay
        is_damped = step > 1 or options["dampen_first"]
        damping = 1 - options["dampening"] if is_damped else 1.0
        return cls.Scalars(decay, momentum, damping, lr)

    @staticmethod
    def update(k: Scalars, variant: Any, /, param: Any, g: Any, b: Any, s: Any, t: Any) -> None:
        """Update a block in place; ``s`` and ``t`` are scratch."""
        if variant.maximize:
            g = np.negative(g, out=s)
        if variant.decay == "l2":
            np.multiply(k.weight_decay, param, out=t)
            g = np.add(g, t, out=s)

        if variant.momentum != "none":
            b *= k.momentum
            np.multiply(k.damping, g, out=t)
            b += t
        if variant.momentum == "heavy_ball":
            g = b
        if variant.momentum == "nesterov":
            np.multiply(k.momentum, b, out=t)
            g = np.add(g, t, out=s)
        np.multiply(k.lr, g, out=t)
        if variant.decay == "decoupled":
            param *= k.weight_decay
        param -= t
