"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer
from lucid_gpu.optim.core.pytorch import Counterpart


class SGD(FusedOptimizer):
    r"""Stochastic gradient descent, with momentum, Nesterov's variant and weight decay.

    With the gradient :math:`g` (negated for ``maximize``; with L2 decay :math:`g + λθ`), after
    ``θ ← θ(1 − ηλ)`` with decoupled decay::

        b ← g                                  at the first step with momentum; see dampen_first
        b ← μ·b + (1 − τ)·g                    from then on
        θ ← θ − η·b                            nesterov: θ ← θ − η·(g + μ·b)

    Without momentum there is no ``b`` and ``θ ← θ − η·g``.

    State: ``step`` (int) and, with momentum, ``momentum_buffer`` (b), of the shape of its
    parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        momentum: μ ≥ 0.
        dampening: τ, a finite number; None stands for μ, so that b is a moving average.
        weight_decay: λ ≥ 0.
        nesterov: True looks ahead along the momentum; needs ``momentum`` > 0 and no dampening.
        decoupled_weight_decay: True decays the parameter itself instead of adding λθ to the
            gradient.
        dampen_first: True starts from ``b = 0`` and dampens the first gradient like the others.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

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
    counterpart = Counterpart(lacks=("dampen_first", "decoupled_weight_decay"), keeps_step=False)
    switches = {"momentum": ("none", "heavy_ball", "nesterov")}  # noqa: RUF012 - of the base class
    scratch = 2

    class Scalars(NamedTuple):
        """Constants of one step."""

        momentum: float
        damping: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float | None = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        dampen_first: bool = False,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "decoupled_weight_decay": decoupled_weight_decay,
            "dampen_first": dampen_first,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "momentum", "weight_decay")
        if options["dampening"] is not None:
            checks.finite(options, "dampening")
        checks.switches(options, "nesterov", "decoupled_weight_decay", "dampen_first")
        if options["nesterov"] and not (options["momentum"] > 0 and options["dampening"] == 0):
            raise ValueError(
                "nesterov needs momentum > 0 and dampening 0, not "
                f"momentum {options['momentum']!r} and dampening {options['dampening']!r}"
            )

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choice of each switch."""
        momentum = "nesterov" if options["nesterov"] else "heavy_ball"
        return {"momentum": momentum if options["momentum"] else "none"}

    @staticmethod
    def used_slots(variant: Any) -> tuple[str, ...]:
        """Return the buffer if there is momentum."""
        return () if variant.momentum == "none" else SGD.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> SGD.Scalars:  # noqa: ARG004 - others' do
        """Return the constants of a step."""
        momentum, dampening = options["momentum"], options["dampening"]
        damping = 1 - (momentum if dampening is None else dampening)
        return SGD.Scalars(momentum, damping, options["lr"])

    @staticmethod
    def first_scalars(options: Mapping[str, Any], t: int) -> SGD.Scalars:
        """Return the constants of the step for which b was made: 1 − τ counts as 1, so b ← g."""
        scalars = SGD.scalars(options, t)
        return scalars if options["dampen_first"] else scalars._replace(damping=1.0)

    @staticmethod
    def update(k: Scalars, variant: Any, /, param: Any, g: Any, b: Any, s: Any, t: Any) -> None:
        """Update a block in place; ``s`` and ``t`` are scratch."""
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
        param -= t
