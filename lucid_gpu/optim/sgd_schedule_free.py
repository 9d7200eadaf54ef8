"""Stochastic gradient descent without a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions
from lucid_gpu.optim.core.schedule_free import ScheduleFree, averaging


class SGDScheduleFree(ScheduleFree):
    r"""Stochastic gradient descent that averages as it goes, and so needs no schedule.

    With the gradient :math:`g` (negated for ``maximize``; with weight decay :math:`g + λθ`), at
    the :math:`t`-th step of a parameter, with ``η' = η·min(1, t/warmup_steps)`` and η* the largest
    η' so far, p for ``weight_lr_power``, ``w = tʳ·η*ᵖ``, c = w / (the sum of all w so far), and β1
    for ``momentum``::

        θ ← θ + c·(z − θ)
        θ ← θ + η'(β1(1 − c) − 1)·g
        z ← z − η'·g

    Call :meth:`eval` ahead of judging or saving the model, and :meth:`train` ahead of going on:
    after the former the parameters hold the average of the iterates.

    State: ``step`` (int), ``weight_sum`` and ``lr_max`` (floats: the sum of all w, and η*), and
    ``z``, which begins with the parameter, of the shape of its parameter. The option
    ``train_mode`` of each group says what the parameters hold.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        momentum: β1 in (0, 1): how far gradients are taken from the iterates towards their average.
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
        >>> optimizer = SGDScheduleFree([w], lr=0.25)
        >>> for _ in range(2):
        ...     w.grad = 2 * w.data
        ...     optimizer.step()
        >>> optimizer.eval()
        >>> f"{w.numpy()[0]:.4f}"
        '0.3750'

    Source: Defazio et al., "The Road Less Scheduled", arXiv:2405.15682.
    """

    kernel = "sgd_schedule_free"
    functor = "SGDScheduleFree"
    slots = ("z",)
    scratch = 3
    decay = "l2"

    class Scalars(NamedTuple):
        """Constants of one step."""

        weight: float
        step_size: float
        lr: float

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        warmup_steps: float = 0,
        r: float = 0.0,
        weight_lr_power: float = 2.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "warmup_steps": warmup_steps,
            "r": r,
            "weight_lr_power": weight_lr_power,
        }
        super().__init__(params, defaults, **frame)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        super().check_options(options)
        checks.rates(options, "momentum")
        if options["momentum"] == 0:
            raise ValueError(f"momentum must be > 0 and < 1, not {options['momentum']!r}")

    @staticmethod
    def beta(options: Mapping[str, Any]) -> float:
        """Return β1."""
        momentum: float = options["momentum"]
        return momentum

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the iterate."""
        return SGDScheduleFree.slots

    @staticmethod
    def scalars(
        options: Mapping[str, Any], t: int, carry: Mapping[str, float]
    ) -> tuple[SGDScheduleFree.Scalars, dict[str, float]]:
        """Return the constants of a step, and what it leaves for the next one."""
        lr, weight, left = averaging(options, t, carry)
        step_size = lr * (options["momentum"] * (1 - weight) - 1)
        return SGDScheduleFree.Scalars(weight, step_size, lr), left

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, z: Any, a: Any, b: Any, c: Any) -> None:
        """Update a block in place; ``a``, ``b`` and ``c`` are scratch."""
        np.multiply(k.step_size, g, out=a)
        np.multiply(k.lr, g, out=b)
        np.subtract(z, param, out=c)
        c *= k.weight
        param += c
        param += a
        z -= b
