"""AdamW without a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions
from lucid_gpu.optim.core.schedule_free import ScheduleFree, averaging


class AdamWScheduleFree(ScheduleFree):
    r"""AdamW that averages as it goes, and so needs no schedule of its learning rate.

    With the gradient :math:`g` (negated for ``maximize``), at the :math:`t`-th step of a parameter,
    with ``η' = η·min(1, t/warmup_steps)`` and η* the largest η' so far, p for ``weight_lr_power``,
    ``w = tʳ·η*ᵖ`` and c = w / (the sum of all w so far)::

        v ← β2·v + ((1 − β2)·g)·g
        u = g / (sqrt(v / (1 − β2ᵗ)) + ε)
        u ← u + λ·θ                              with weight decay
        θ ← θ + c·(z − θ)
        θ ← θ + η'(β1(1 − c) − 1)·u
        z ← z − η'·u

    Call :meth:`eval` ahead of judging or saving the model, and :meth:`train` ahead of going on:
    after the former the parameters hold the average of the iterates.

    State: ``step`` (int), ``weight_sum`` and ``lr_max`` (floats: the sum of all w, and η*),
    ``z``, which begins with the parameter, and ``exp_avg_sq`` (v), both of the shape of their
    parameter. The option ``train_mode`` of each group says what the parameters hold.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        betas: β1 in (0, 1), how far gradients are taken from the iterates towards their average,
            and the decay rate β2 of the moment, in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0.
        warmup_steps: ≥ 0; over so many steps the learning rate rises.
        r: ≥ 0, the power of t in the weights of the average.
        weight_lr_power: ≥ 0, that of the learning rate.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = AdamWScheduleFree([w], lr=0.1)
        >>> for _ in range(2):
        ...     w.grad = 2 * w.data
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> f"{w.numpy()[0]:.4f}"
        '0.8527'

    Source: Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
    """

    kernel = "adamw_schedule_free"
    functor = "AdamWScheduleFree"
    slots = ("z", "exp_avg_sq")
    scratch = 2
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        beta2: float
        c2: float
        correction2: float
        eps: float
        decay: float
        weight: float
        step_size: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 2.5e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        warmup_steps: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        super().check_options(options)
        checks.nonnegative(options, "eps")
        checks.decay_rates(options, "betas", 2)
        if options["betas"][0] == 0:
            raise ValueError(f"betas[0] must be > 0 and < 1, not {options['betas'][0]!r}")

    @staticmethod
    def beta(options: Mapping[str, Any]) -> float:
        """Return β1."""
        beta1: float = options["betas"][0]
        return beta1

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the iterate and the moment."""
        return AdamWScheduleFree.slots

    @staticmethod
    def scalars(
        options: Mapping[str, Any], t: int, carry: Mapping[str, float]
    ) -> tuple[AdamWScheduleFree.Scalars, dict[str, float]]:
        """Return the constants of a step, and what it leaves for the next one."""
        beta1, beta2 = options["betas"]
        lr, weight, left = averaging(options, t, carry)
        own = AdamWScheduleFree.Scalars(
            beta2=beta2,
            c2=1 - beta2,
            correction2=1 - beta2**t,
            eps=options["eps"],
            decay=options["weight_decay"],
            weight=weight,
            step_size=lr * (beta1 * (1 - weight) - 1),
            lr=lr,
        )
        return own, left

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, z: Any, v: Any, a: Any, b: Any) -> None:
        """Update a block in place; ``a`` and ``b`` are scratch."""
        np.multiply(k.c2, g, out=a)
        a *= g
        v *= k.beta2
        v += a
        d = np.divide(v, k.correction2, out=a)
        np.sqrt(d, out=d)
        d += k.eps
        u = np.divide(g, d, out=a)
        if k.decay != 0:
            u += np.multiply(k.decay, param, out=b)
        np.subtract(z, param, out=b)
        b *= k.weight
        param += b
        param += np.multiply(k.step_size, u, out=b)
        u *= k.lr
        z -= u
