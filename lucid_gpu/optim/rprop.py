"""Rprop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Rprop(FusedOptimizer):
    r"""Resilient backpropagation: steps by the sign of the gradient, each of a size of its own.

    For gradients of whole data sets, whose signs can be trusted. With the gradient :math:`g`
    (negated for ``maximize``), the one before it :math:`g'` and the step size :math:`s`::

        x = g·g'
        s ← s·η⁺ where x > 0, s·η⁻ where x < 0; then s ← min(max(s, least), most)
        g ← 0 where x < 0
        θ ← θ − sign(g)·s
        g' ← g

    The sign of NaN is NaN.

    State: ``step`` (int), ``prev`` (g'), and ``step_size`` (s), which begins with the learning
    rate of its group, both of the shape of their parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the first step size ≥ 0. What it is changed to later has no effect.
        etas: the factors (η⁻, η⁺), 0 < η⁻ < 1 < η⁺.
        step_sizes: the bounds (least, most) of step sizes, 0 < least ≤ most.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Rprop([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Sources: Riedmiller & Braun, "A Direct Adaptive Method for Faster Backpropagation Learning: The
    RPROP Algorithm", 1993; the variant iRprop⁻: Igel & Hüsken, "Improving the Rprop Learning
    Algorithm", 2000.
    """

    kernel = "rprop"
    functor = "Rprop"
    slots = ("prev", "step_size")
    scratch = 1
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        shorter: float
        longer: float
        least: float
        most: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50.0),
        **frame: Unpack[FrameOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "etas": etas, "step_sizes": step_sizes}, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr")
        checks.finite_numbers(options, "etas", 2)
        checks.finite_numbers(options, "step_sizes", 2)
        if not 0 < options["etas"][0] < 1 < options["etas"][1]:
            raise ValueError(f"etas must be 0 < etas[0] < 1 < etas[1], not {options['etas']!r}")
        if not 0 < options["step_sizes"][0] <= options["step_sizes"][1]:
            raise ValueError(
                "step_sizes must be 0 < step_sizes[0] <= step_sizes[1], "
                f"not {options['step_sizes']!r}"
            )

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the gradient before and the step sizes."""
        return Rprop.slots

    @staticmethod
    def fills(options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what step sizes begin with."""
        return {"step_size": options["lr"]}

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Rprop.Scalars:  # noqa: ARG004 - others' do
        """Return the constants of a step."""
        return Rprop.Scalars(*options["etas"], *options["step_sizes"])

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, previous: Any, size: Any, a: Any) -> None:
        """Update a block in place; ``a`` is scratch."""
        x = np.multiply(g, previous, out=a)
        is_turn = x < 0
        np.multiply(size, k.longer, out=size, where=x > 0)
        np.multiply(size, k.shorter, out=size, where=is_turn)
        np.maximum(size, k.least, out=size)
        np.minimum(size, k.most, out=size)
        np.copyto(previous, g)
        np.copyto(previous, 0, where=is_turn)
        np.sign(previous, out=a)
        a *= size
        param -= a
