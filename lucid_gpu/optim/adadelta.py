"""Adadelta."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Adadelta(FusedOptimizer):
    r"""Steps as large as the ones before, by the ratio of mean squares; no learning rate needed.

    With the gradient :math:`g` (negated for ``maximize``; with weight decay :math:`g + λθ`)::

        v ← ρ·v + ((1 − ρ)·g)·g
        Δ = (sqrt(a + ε) / sqrt(v + ε)) · g
        a ← ρ·a + ((1 − ρ)·Δ)·Δ
        θ ← θ − η·Δ

    State: ``step`` (int), ``square_avg`` (v) and ``acc_delta`` (a), both of the shape of their
    parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: η ≥ 0, a factor of each step.
        rho: the decay rate ρ of the mean squares, 0 ≤ ρ ≤ 1.
        eps: ε ≥ 0, added under both roots.
        weight_decay: λ ≥ 0.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Adadelta([w], eps=1e-3)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9001'

    Source: Zeiler, "ADADELTA: An Adaptive Learning Rate Method", arXiv:1212.5701, where η is 1.
    """

    kernel = "adadelta"
    functor = "Adadelta"
    slots = ("square_avg", "acc_delta")
    scratch = 2
    decay = "l2"

    class Scalars(NamedTuple):
        """Constants of one step."""

        rho: float
        c: float
        eps: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "rho", "eps", "weight_decay")
        if options["rho"] > 1:
            raise ValueError(f"rho must be >= 0 and <= 1, not {options['rho']!r}")

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the two mean squares."""
        return Adadelta.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Adadelta.Scalars:  # noqa: ARG004 - others' do
        """Return the constants of a step."""
        rho = options["rho"]
        return Adadelta.Scalars(rho, 1 - rho, options["eps"], options["lr"])

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, v: Any, a: Any, s: Any, t: Any) -> None:
        """Update a block in place; ``s`` and ``t`` are scratch."""
        np.multiply(k.c, g, out=t)
        t *= g
        v *= k.rho
        v += t
        delta = np.sqrt(np.add(a, k.eps, out=s), out=s)
        delta /= np.sqrt(np.add(v, k.eps, out=t), out=t)
        delta *= g
        np.multiply(k.c, delta, out=t)
        t *= delta
        a *= k.rho
        a += t
        delta *= k.lr
        param -= delta
