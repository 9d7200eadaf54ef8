"""Muon."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lucid_gpu.device.arrays import as_array
from lucid_gpu.optim.adam import AdamW
from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.array_code import ArrayOptimizer
from lucid_gpu.optim.core.newton_schulz import DTYPES, orthogonalized
from lucid_gpu.optim.core.pytorch import Counterpart

SLOTS = {"muon": ("momentum_buffer",), "adamw": ("exp_avg", "exp_avg_sq")}
"""The slots of each kind of group."""

ADAMW = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
"""The options of a group of kind ``"adamw"`` that does not give its own."""


def _options_of_pytorch(options: dict[str, Any]) -> dict[str, Any]:
    if options["kind"] != "muon":
        raise ValueError(
            'a group of kind "adamw" is unknown to the Muon of PyTorch: only a Muon without can be '
            "exported"
        )
    return {name: value for name, value in options.items() if name not in ("kind", "ns_dtype")}


class Muon(ArrayOptimizer):
    r"""Momentum whose matrices are orthogonalized, and AdamW beside it for all that is no matrix.

    Of a group of kind ``"muon"``, every parameter is a matrix of :math:`m` rows and :math:`n`
    columns. One of three and more dimensions counts as one: its first axis are the rows, all others
    are flattened to columns, as is usual for the kernels of convolutions. With the gradient
    :math:`g`::

        b ← b + (1 − μ)(g − b)
        x = g + μ(b − g)                   nesterov=False: b
        x ← xᵀ                             where m > n, and back in the end
        x ← x / max(‖x‖, ε)                Frobenius norm
        A = x·xᵀ,  x ← c1·x + (c2·A + c3·A·A)·x,   ns_steps times
        θ ← θ(1 − ηλ)
        θ ← θ − η·s·x

    where s is sqrt(max(1, m / n)), or 0.2·sqrt(max(m, n)) for ``adjust_lr_fn="match_rms_adamw"``,
    with which learning rates and decays are those of AdamW.

    Groups with ``"kind": "adamw"`` step as :class:`AdamW` does, to the bit on NumPy. Put biases,
    gains, embeddings and the output layer there. Such a group has options of its own: those of
    ``lr``, ``betas``, ``eps`` and ``weight_decay`` that it does not give are AdamW's defaults, not
    what the constructor was given. All other options are for matrices alone.

    State: ``step`` (int); ``momentum_buffer`` (b) of a matrix; ``exp_avg`` and ``exp_avg_sq`` of a
    parameter in an ``adamw`` group. Each has the shape and dtype of its parameter; where that is
    of 16 bits, they are float32, and so is ``master``, its exact value, which is what is updated. A
    step multiplies matrices by BLAS, so that GPU and CPU agree to rounding, not to the bit.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of two and more dimensions unless their group is of kind
            ``"adamw"``.
        lr: the learning rate η ≥ 0.
        weight_decay: λ ≥ 0, decoupled.
        momentum: μ in [0, 1).
        nesterov: whether x looks ahead.
        ns_coefficients: c1, c2 and c3 of the Newton-Schulz iteration, finite.
        eps: ε ≥ 0, the least divisor; for ``adamw`` as in :class:`AdamW`.
        ns_steps: a whole number of iterations, from 0 to 99.
        adjust_lr_fn: None or ``"original"``, or ``"match_rms_adamw"``.
        ns_dtype: what the iteration computes in: None for float64 for a float64 parameter, float32
            for all others; ``"bfloat16"`` (which is what PyTorch uses; sums are in float32),
            ``"float32"`` or ``"float64"``.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds, or a parameter of less than two dimensions is in a
            group of kind ``"muon"``; the text names option, bound and value, or the parameter.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w, b = Parameter([[1.0, 0.0], [0.0, 1.0]]), Parameter([1.0])
        >>> optimizer = Muon(
        ...     [{"params": [w]}, {"params": [b], "kind": "adamw", "lr": 0.1}],
        ...     lr=0.5, weight_decay=0.0, ns_coefficients=(1.5, -0.5, 0.0), ns_steps=12,
        ... )
        >>> w.grad, b.grad = 2 * w.data, 2 * b.data
        >>> optimizer.step()
        >>> [[f"{value:.3f}" for value in row] for row in w.numpy()], f"{b.numpy()[0]:.3f}"
        ([['0.500', '0.000'], ['0.000', '0.500']], '0.899')

    Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Liu et
    al., "Muon is Scalable for LLM Training", arXiv:2502.16982, for ``"match_rms_adamw"``.
    """

    slots = (*SLOTS["muon"], *SLOTS["adamw"])
    counterpart = Counterpart(keeps_step=False, options=_options_of_pytorch)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_dtype: str | None = None,
    ) -> None:
        defaults = {
            "kind": "muon",
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "ns_dtype": ns_dtype,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Mapping[str, Any]) -> None:
        """Add a group, whose ``kind`` is ``"muon"`` or ``"adamw"``; see :class:`Optimizer`.

        Raises:
            TypeError: as of :class:`Optimizer`.
            ValueError: as of :class:`Optimizer`, or ``kind`` is neither, or a parameter of less
                than two dimensions is in a group of kind ``"muon"``.
        """
        if isinstance(param_group, Mapping) and param_group.get("kind") == "adamw":
            param_group = {**ADAMW, **param_group}
        super().add_param_group(param_group)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.one_of(options, "kind", tuple(SLOTS))
        checks.nonnegative(options, "lr", "weight_decay", "eps")
        checks.rates(options, "momentum")
        checks.switches(options, "nesterov")
        checks.finite_numbers(options, "ns_coefficients", 3)
        checks.whole_numbers(options, "ns_steps", least=0, most=99)
        checks.one_of(options, "adjust_lr_fn", (None, "original", "match_rms_adamw"))
        checks.one_of(options, "ns_dtype", (None, *DTYPES))
        if options["kind"] == "adamw":
            # Other groups have none, so that a schedule of the momentum means theirs.
            if "betas" not in options:
                raise ValueError('a group of kind "adamw" needs betas: give it (0.9, 0.999)')
            checks.decay_rates(options, "betas", 2)

    def param_problems(self, data: Any, options: Mapping[str, Any]) -> list[str]:
        """Return, in words, why a parameter cannot be trained by its kind of group."""
        array = as_array(data)
        if array is None or array.ndim > 1 or options["kind"] == "adamw":
            return []
        return [
            f"has {array.ndim} dimensions, and Muon orthogonalizes matrices: put it into a group "
            'with "kind": "adamw"'
        ]

    def slot_shapes(
        self, options: Mapping[str, Any], shape: tuple[int, ...]
    ) -> Mapping[str, tuple[int, ...]]:
        """Return the slots of the kind of group, of the shape of the parameter."""
        return dict.fromkeys(SLOTS[options["kind"]], shape)

    def saved_options(self, slots: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return of which kind the group of a saved state was."""
        return {"kind": "adamw" if "exp_avg" in slots else "muon"}

    def update(
        self, xp: Any, param: Any, grad: Any, slots: Mapping[str, Any], options: Any, t: int
    ) -> None:
        """Update one parameter in place."""
        if options["kind"] == "adamw":
            _step_as_adamw(xp, param, grad, slots, options, t)
        elif param.size:
            _step_as_muon(xp, param, grad, slots["momentum_buffer"], options)


def _step_as_adamw(
    xp: Any, param: Any, grad: Any, slots: Mapping[str, Any], options: Any, t: int
) -> None:
    shrink = 1 - options["lr"] * options["weight_decay"]
    if shrink != 1:
        if xp.may_share_memory(grad, param):
            grad = grad.copy()
        param *= shrink
    variant: Any = AdamW.Variant  # whose fields are declared when the class is made
    scalars = AdamW.scalars(options, t)
    m, v = slots["exp_avg"], slots["exp_avg_sq"]
    a, b = xp.empty_like(param), xp.empty_like(param)
    AdamW.update(scalars, variant(amsgrad=False), param, grad, m, v, None, a, b)


def _step_as_muon(xp: Any, param: Any, grad: Any, b: Any, options: Any) -> None:
    momentum = options["momentum"]
    b += (1 - momentum) * (grad - b)
    look = grad + momentum * (b - grad) if options["nesterov"] else b
    rows, columns = len(param), param.size // len(param)
    x = orthogonalized(
        xp,
        look.reshape(rows, columns),
        options["ns_dtype"] or param.dtype.name,
        options["ns_coefficients"],
        options["ns_steps"],
        options["eps"],
    )
    if options["adjust_lr_fn"] == "match_rms_adamw":
        scale = 0.2 * math.sqrt(max(rows, columns))
    else:
        scale = math.sqrt(max(1, rows / columns))
    param *= 1 - options["lr"] * options["weight_decay"]
    param -= options["lr"] * scale * x.reshape(param.shape).astype(param.dtype)
