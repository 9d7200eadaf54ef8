"""SparseAdam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lucid_gpu.device.arrays import as_array, is_array, kind_of
from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.array_code import ArrayOptimizer
from lucid_gpu.optim.core.pytorch import Counterpart
from lucid_gpu.row_gradient import RowGradient


def _slots_of_pytorch(slots: dict[str, Any]) -> dict[str, Any]:
    return {**slots, "step": int(slots["step"])}


class SparseAdam(ArrayOptimizer):
    r"""Adam on the rows that a gradient has, for embeddings of which a batch uses a few.

    Gradients are :class:`lucid_gpu.RowGradient`. Of each row in one, with the sum :math:`g` of its
    values in order of appearance (negated for ``maximize``), at the :math:`t`-th step of the
    parameter::

        m ← m + (g − m)(1 − β1)
        v ← v + (g·g − v)(1 − β2)
        θ ← θ − (η·sqrt(1 − β2ᵗ) / (1 − β1ᵗ))·(m / (sqrt(v) + ε))

    ε is added ahead of the bias correction, unlike in :class:`Adam`. Rows that a gradient does not
    have stay, and so do their moments: they do not decay meanwhile. A gradient without rows counts
    as a step. Each step waits for the device twice for each parameter: for its least and largest
    row, and for how many different ones there are.

    State: ``step`` (int), ``exp_avg`` (m) and ``exp_avg_sq`` (v), each of the shape and dtype of
    its parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; float32 or float64 arrays
            of one and more dimensions, whose first axis counts the rows.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1 and β2 of the moments, each in [0, 1).
        eps: ε > 0, added to the denominator.
        maximize: True follows the gradient upwards.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds, or a parameter has no dimensions; the text names
            option, bound and value, or the parameter.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter, RowGradient
        >>> table = Parameter(np.ones((4, 2)))
        >>> optimizer = SparseAdam([table], lr=0.1)
        >>> table.grad = RowGradient([3, 1, 3], np.ones((3, 2)))
        >>> optimizer.step()
        >>> table.numpy()[:, 0].round(4).tolist()
        [1.0, 0.9, 1.0, 0.9]

    Source: Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980, on rows
    alone, as PyTorch has it.
    """

    slots = ("exp_avg", "exp_avg_sq")
    widens = False  # rounding a whole table would cost more than its rows
    counterpart = Counterpart(slots=_slots_of_pytorch)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        maximize: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize})

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr")
        checks.positive(options, "eps")
        checks.decay_rates(options, "betas", 2)
        checks.switches(options, "maximize")

    def param_problems(self, data: Any, options: Mapping[str, Any]) -> list[str]:  # noqa: ARG002
        """Return, in words, why a parameter cannot be trained: it has no rows."""
        array = as_array(data)
        if array is None or array.ndim:
            return []
        return ["has no dimensions, so no rows: train it with Adam"]

    def gradient_problems(
        self,
        what: str,
        grad: Any,
        data: Any,
        dtype: np.dtype[Any] | None = None,  # noqa: ARG002 - rows have that of the parameter
    ) -> list[str]:
        """Return, in words, why a gradient cannot be used: most often, because it is dense."""
        if isinstance(grad, RowGradient):
            return [f"{what} {text}" for text in grad.problems(data)]
        kind = "a dense array" if is_array(grad) else f"a {kind_of(grad)}"
        return [
            f"{what} is {kind}, and SparseAdam takes RowGradient(rows, values): give it that, or "
            "train the parameter with Adam"
        ]

    def update(
        self, xp: Any, param: Any, grad: Any, slots: Mapping[str, Any], options: Any, t: int
    ) -> None:
        """Update the rows that the gradient has."""
        rows, g = grad.coalesced()
        if options["maximize"]:
            g = -g
        (beta1, beta2), lr = options["betas"], options["lr"]
        step_size = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        m, v = slots["exp_avg"][rows], slots["exp_avg_sq"][rows]
        m += (g - m) * (1 - beta1)
        v += (g * g - v) * (1 - beta2)
        slots["exp_avg"][rows] = m
        slots["exp_avg_sq"][rows] = v
        m /= xp.sqrt(v) + options["eps"]
        m *= step_size
        param[rows] -= m
