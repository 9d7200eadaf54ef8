"""Averaged stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Unpack

import numpy as np

from lucid_gpu.optim.core import checks
from lucid_gpu.optim.core.fused import FrameOptions, FusedOptimizer
from lucid_gpu.optim.core.pytorch import Counterpart
from lucid_gpu.optim.core.slots import copy_beside


def _eta(options: Mapping[str, Any], t: int) -> float:
    lr, lambd = options["lr"], options["lambd"]
    eta: float = lr / (1 + lambd * lr * (t - 1)) ** options["alpha"]
    return eta


def _mu(options: Mapping[str, Any], t: int) -> float:
    return 1 / float(max(1, t - 1 - options["t0"]))


class ASGD(FusedOptimizer):
    r"""Stochastic gradient descent whose result is the average of the parameters on the way.

    With the gradient :math:`g` (negated for ``maximize``; with weight decay :math:`g + λθ`), at
    the :math:`t`-th step of a parameter, with λ' for ``lambd``,
    ``η_t = η / (1 + λ'η(t − 1))^α`` and ``μ = 1 / max(1, t − 1 − t0)``::

        θ ← θ·(1 − λ'η_t)
        θ ← θ − η_t·g
        a ← θ where μ = 1, else a + (θ − a)·μ

    State: ``step`` (int) and ``ax`` (a), of the shape of its parameter.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts; arrays of float32, float64,
            bfloat16 or float16, of any shape.
        lr: the learning rate η ≥ 0.
        lambd: λ' ≥ 0, by which parameters and learning rate decay.
        alpha: the power α ≥ 0 of the latter.
        t0: ≥ 0; after so many steps the average begins.
        weight_decay: λ ≥ 0.
        frame: ``maximize``, ``state_device`` and others; see :class:`FusedOptimizer`.

    Raises:
        TypeError: an option or ``params`` is of the wrong type.
        ValueError: an option is out of bounds; the text names option, bound and value.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> optimizer = ASGD([w], lr=0.25, lambd=0.0, t0=0)
        >>> for _ in range(3):
        ...     w.grad = 2 * w.data
        ...     optimizer.step()
        >>> (average,) = optimizer.averages()
        >>> w.numpy().tolist(), average.tolist()
        ([0.125], [0.1875])

    Source: Polyak & Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992, with
    the learning rate of Bottou's ``sgd``.
    """

    kernel = "asgd"
    functor = "ASGD"
    slots = ("ax",)
    counterpart = Counterpart(worked_out={"eta": _eta, "mu": _mu})
    scratch = 1
    decay = "l2"

    class Scalars(NamedTuple):
        """Constants of one step."""

        keep: float
        lr: float
        mu: float

    def __init__(
        self,
        params: Any,
        lr: float = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0.0,
        **frame: Unpack[FrameOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults, **frame)

    def averages(self) -> list[Any]:
        """Return a copy of the average of each parameter, in the order of the groups.

        Of a parameter that has not stepped it is a copy of the parameter.
        """
        return [
            copy_beside(self.state.get(param, {}).get("ax", param.data), param)
            for param in self._params()
        ]

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise TypeError or ValueError if an option is out of bounds."""
        checks.nonnegative(options, "lr", "lambd", "alpha", "t0", "weight_decay")

    @staticmethod
    def used_slots(_: Any) -> tuple[str, ...]:
        """Return the average."""
        return ASGD.slots

    @staticmethod
    def scalars(options: Mapping[str, Any], t: int) -> ASGD.Scalars:
        """Return the constants of a step."""
        eta = _eta(options, t)
        return ASGD.Scalars(1 - options["lambd"] * eta, eta, _mu(options, t))

    @staticmethod
    def update(k: Scalars, _: Any, /, param: Any, g: Any, average: Any, a: Any) -> None:
        """Update a block in place; ``a`` is scratch."""
        np.multiply(k.lr, g, out=a)
        param *= k.keep
        param -= a
        if k.mu == 1:
            np.copyto(average, param)
        else:
            np.subtract(param, average, out=a)
            a *= k.mu
            average += a
