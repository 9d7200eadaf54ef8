"""Adafactor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.array_code import ArrayOptimizer


class Adafactor(ArrayOptimizer):
    r"""Second moments of matrices kept as a row and a column, and steps in scale with parameters.

    With the gradient :math:`g` (negated for ``maximize``), :math:`N` elements of a parameter, at
    its :math:`t`-th step::

        w = t^beta2_decay,  α = max(ε2, ‖θ‖ / sqrt(N)) · min(η, 1 / sqrt(t))
        R ← R + w(mean of g² along rows − R)            of two and more dimensions
        C ← C + w(mean of g² along columns − C)
        V = R·C / max(mean of R, ε1)
        V ← V + w(g² − V)                               of less
        u = g / sqrt(max(V, ε1²))
        θ ← θ(1 − ηλ)
        θ ← θ − (α / max(1, ‖u‖ / (sqrt(N)·d)))·u

    Rows and columns are the last two axes; those ahead of them are a batch of matrices. Norms and
    means are summed in float64 and stay on the device of the parameter: no step waits for them. As
    each device adds in an order of its own, GPU and CPU agree to rounding, not to the bit.

    State: ``step`` (int); ``row_var`` (R) of shape (…, m, 1) and ``col_var`` (C) of shape
    (…, 1, n) of a parameter of shape (…, m, n); ``variance`` (V) of one of less than two
    dimensions. All have the dtype of the parameter; where that is of 16 bits, they are float32, and
    so is ``master``, its exact value, which is what is updated.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the largest relative learning rate, η ≥ 0.
        beta2_decay: the exponent of w, ≤ 0.
        eps: ε1 and ε2, each ≥ 0. None for ε1 is the machine epsilon of float64 for a float64
            parameter, of float32 for all others. Where ε1² is 0 in that dtype, as with 1e-30 in
            float32, a gradient of zeros makes NaN.
        d: the largest root mean square of u, ≥ 1.
        weight_decay: λ ≥ 0, decoupled.
        maximize: True follows the gradient upwards.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Adafactor([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Source: Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    arXiv:1804.04235, with ε1 where PyTorch has it.
    """

    slots = ("row_var", "col_var", "variance")

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "weight_decay")
        checks.finite(options, "beta2_decay", "d")
        if options["beta2_decay"] > 0:
            raise ValueError(f"beta2_decay must be <= 0, not {options['beta2_decay']!r}")
        if options["d"] < 1:
            raise ValueError(f"d must be >= 1, not {options['d']!r}")
        eps = options["eps"]
        if not isinstance(eps, tuple | list) or len(eps) != 2:
            raise ValueError(f"eps must be a tuple of None or a number and a number, not {eps!r}")
        own = {f"eps[{index}]": value for index, value in enumerate(eps)}
        checks.nonnegative(own, *(["eps[1]"] if eps[0] is None else own))
        if isinstance(options, dict):
            options["eps"] = list(own.values()) if isinstance(eps, list) else tuple(own.values())
        checks.switches(options, "maximize")

    def slot_shapes(
        self,
        options: Mapping[str, Any],  # noqa: ARG002 - others' do
        shape: tuple[int, ...],
    ) -> Mapping[str, tuple[int, ...]]:
        """Return a row and a column of a matrix; of a vector, as much as it has."""
        if len(shape) < 2:
            return {"variance": shape}
        return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}

    def update(
        self, xp: Any, param: Any, grad: Any, slots: Mapping[str, Any], options: Any, t: int
    ) -> None:
        """Update one parameter in place."""
        if not param.size:
            return
        lr, (eps1, eps2) = options["lr"], options["eps"]
        eps1 = np.finfo(param.dtype).eps.item() if eps1 is None else eps1
        root = math.sqrt(param.size)
        rate = xp.maximum(eps2, _norm(xp, param) / root) * min(lr, 1 / math.sqrt(t))

        variance = _variance(xp, xp.square(grad), slots, t ** options["beta2_decay"], eps1)
        u = grad / xp.sqrt(xp.maximum(variance, eps1 * eps1))
        rate /= xp.maximum(1.0, _norm(xp, u) / (root * options["d"]))
        # A number without dimensions, which would otherwise decide the dtype.
        u *= (-rate if options["maximize"] else rate).astype(param.dtype)
        if options["weight_decay"] != 0:
            param *= 1 - lr * options["weight_decay"]
        param -= u


def _variance(xp: Any, squares: Any, slots: Mapping[str, Any], weight: float, eps1: float) -> Any:
    """Return the second moments after those of this step have joined them."""
    if "variance" in slots:
        variance = slots["variance"]
        variance += weight * (squares - variance)
        return variance
    row, column = slots["row_var"], slots["col_var"]
    row += weight * (_mean(xp, squares, -1) - row)
    column += weight * (_mean(xp, squares, -2) - column)
    return row * column / xp.maximum(_mean(xp, row, -2), eps1)


def _mean(xp: Any, array: Any, axis: int) -> Any:
    return xp.mean(array, axis, np.float64, keepdims=True).astype(array.dtype)


def _norm(xp: Any, array: Any) -> Any:
    return xp.sqrt(xp.sum(xp.square(array, dtype=np.float64)))
