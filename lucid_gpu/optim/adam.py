"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer
from lucid_gpu.optim.core.pytorch import Counterpart


class Adam(FusedOptimizer):
    r"""Adaptive moment estimation.

    With the gradient :math:`g` (negated for ``maximize``; with L2 decay :math:`g + λθ`), at the
    :math:`t`-th step of a parameter, after ``θ ← θ(1 − ηλ)`` with decoupled decay::

        m ← m + (1 − β1)(g − m)
        v ← β2·v + ((1 − β2)·g)·g
        d = sqrt(v) / sqrt(1 − β2ᵗ) + ε
        θ ← θ − ((η / (1 − β1ᵗ)) · m) / d

    ``amsgrad=True`` keeps the largest bias-corrected second moment: ``v̂ ← max(v̂, v / (1 − β2ᵗ))``
    and ``d = sqrt(v̂) + ε``. ``amsgrad="raw"`` keeps the largest ahead of the correction, as
    PyTorch does: ``v̂ ← max(v̂, v)`` and ``d = sqrt(v̂) / sqrt(1 − β2ᵗ) + ε``.

    State: ``step`` (int), ``exp_avg`` (m), ``exp_avg_sq`` (v) and, with ``amsgrad``,
    ``max_exp_avg_sq`` (v̂), each of the shape of its parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1 and β2 of the moments, each in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        amsgrad: False, True or ``"raw"``.
        decoupled_weight_decay: True decays the parameter itself, as :class:`AdamW` does, instead
            of adding λθ to the gradient.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = Adam([w], lr=0.1)
        >>> w.grad = 2 * w.data
        >>> optimizer.step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'

    Sources: Kingma & Ba, "Adam: A Method for Stochastic Optimization", arXiv:1412.6980; Loshchilov
    & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101; Reddi, Kale & Kumar, "On
    the Convergence of Adam and Beyond", arXiv:1904.09237.
    """

    kernel = "adam"
    functor = "Adam"
    slots = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
    counterpart = Counterpart(spelled={"amsgrad": {False: False, "raw": True}})
    switches = {"amsgrad": (False, True, "raw")}  # noqa: RUF012 - declared by the base class
    scratch = 2

    class Scalars(NamedTuple):
        """Constants of one step."""

        c1: float
        beta2: float
        c2: float
        step_size: float
        correction2: float
        root2: float
        eps: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool | str = False,
        *,
        decoupled_weight_decay: bool = False,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "eps", "weight_decay")
        checks.decay_rates(options, "betas", 2)
        checks.one_of(options, "amsgrad", self.switches["amsgrad"])
        checks.switches(options, "decoupled_weight_decay")

    @staticmethod
    def variant(options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the choice of each switch."""
        return {"amsgrad": options["amsgrad"]}

    @staticmethod
    def used_slots(variant: Any) -> tuple[str, ...]:
        """Return all slots with amsgrad, else the two moments."""
        return Adam.slots if variant.amsgrad else Adam.slots[:2]

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> Adam.Scalars:
        """Return the constants of a step."""
        lr, (beta1, beta2), eps = options["lr"], options["betas"], options["eps"]
        c1, c2 = 1 - beta1, 1 - beta2
        correction1, correction2 = 1 - beta1**t, 1 - beta2**t
        step_size, root2 = lr / correction1, math.sqrt(correction2)
        return Adam.Scalars(c1, beta2, c2, step_size, correction2, root2, eps)

    @staticmethod
    def update(
        k: Scalars, variant: Any, /, param: Any, g: Any, m: Any, v: Any, v_max: Any, a: Any, b: Any
    ) -> None:
        """Update a block in place; ``a`` and ``b`` are scratch."""
        np.subtract(g, m, out=b)
        b *= k.c1
        m += b
        np.multiply(k.c2, g, out=b)
        b *= g
        v *= k.beta2
        v += b

        d = b
        if variant.amsgrad is True:
            np.divide(v, k.correction2, out=d)
            np.maximum(v_max, d, out=v_max)
            np.sqrt(v_max, out=d)
        elif variant.amsgrad == "raw":
            np.maximum(v_max, v, out=v_max)
            np.sqrt(v_max, out=d)
            d /= k.root2
        else:
            np.sqrt(v, out=d)
            d /= k.root2
        d += k.eps
        np.multiply(k.step_size, m, out=a)
        a /= d
        param -= a


class AdamW(Adam):
    """Adam with decoupled weight decay, on by default.

    The update is that of :class:`Adam`, behind θ ← θ(1 − ηλ) in place of g ← g + λ·θ.

    Args:
        params: as of :class:`Adam`.
        lr: the learning rate η ≥ 0.
        betas: the decay rates β1 and β2 of the moments, each in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        amsgrad: False, True or ``"raw"``, as of :class:`Adam`.
        decoupled_weight_decay: False decays as :class:`Adam` does.
        frame: as of :class:`Adam`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> AdamW([Parameter([1.0])]).param_groups[0]["weight_decay"]
        0.01

    Source: Loshchilov & Hutter, "Decoupled Weight Decay Regularization", arXiv:1711.05101.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool | str = False,
        *,
        decoupled_weight_decay: bool = True,
        **frame: Unpack[FrameOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            decoupled_weight_decay=decoupled_weight_decay,
            **frame,
        )
