"""The rule of averages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer


class Averaging(FusedOptimizer):
    """The rule ``a ← a + (w·(θ − a)) / n`` over averages, whose gradients are the parameters θ.

    Where w = n, which is 1 then, ``a ← θ``.

    Args:
        params: the averages a.
        weight: w in [0, 1], of a moving average.
        divisor: n ≥ 1, the number of models in a mean.
        frame: of every rule.
    """

    kernel = "average"
    functor = "Averaging"
    slots = ()
    scratch = 1
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        weight: float
        divisor: float

    def __init__(
        self, params: Any, weight: float = 1.0, divisor: float = 1.0, **frame: Unpack[FrameOptions]
    ) -> None:
        super().__init__(params, {"weight": weight, "divisor": divisor}, **frame)

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return none."""
        return ()

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Averaging.Scalars:  # noqa: ARG004
        """Return the constants of a step."""
        return Averaging.Scalars(options["weight"], options["divisor"])

    @staticmethod
    def update(k: Scalars, _: Any, /, average: Any, param: Any, s: Any) -> None:
        """Update a block in place; ``s`` is scratch."""
        if k.weight == k.divisor:
            np.copyto(average, param)
        else:
            np.subtract(param, average, out=s)
            s *= k.weight
            s /= k.divisor
            average += s
