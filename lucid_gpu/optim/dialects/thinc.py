"""Thinc's optimizers: called for one parameter after the other, mapped onto the rules here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from lucid_gpu import optim
from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import device_of
from lucid_gpu.parameter import Parameter

Schedule: TypeAlias = float | Callable[..., float]
"""A number, or what gives one for a step: ``schedule(step, key=key, last_score=…)``."""

MOST_DECAY = 0.9999
"""Of the averages, in the long run."""


class Optimizer:
    """Base of the optimizers; a subclass names the rule.

    An instance is handed to ``model.finish_update``, which calls it with each parameter and its
    gradient. Options may be schedules of Thinc, which :meth:`step_schedules` moves on.

    Args:
        learn_rate: the learning rate η ≥ 0.
        L2: λ ≥ 0.
        grad_clip: the largest norm of a gradient; 0 clips none.
        L2_is_weight_decay: True shrinks the weights after the update, θ ← θ − ηλθ; False adds λθ to
            the gradient.
        use_averages: True keeps an average of each parameter in ``averages``, by its key, for
            ``model.use_params``.

    Attributes:
        averages: of the parameters, by their keys; None without.
        last_score: for schedules that look at it: a pair of step and score, or None.
    """

    def __init__(
        self,
        learn_rate: Schedule,
        *,
        L2: Schedule = 0.0,  # noqa: N803 - Thinc's name
        grad_clip: Schedule = 1.0,
        L2_is_weight_decay: bool = True,  # noqa: N803
        use_averages: bool = True,
    ) -> None:
        self._options = {"learn_rate": learn_rate, "L2": L2, "grad_clip": grad_clip}
        self._is_decoupled = L2_is_weight_decay
        self._steps: dict[Any, tuple[Parameter, optim.FusedOptimizer]] = {}
        self._step = 0
        self._last_score: tuple[int, float] | None = None
        self.averages: dict[Any, Any] | None = {} if use_averages else None

    @property
    def step(self) -> int:
        """How often :meth:`step_schedules` was called."""
        return self._step

    @property
    def last_score(self) -> tuple[int, float] | None:
        """The step and the score that was set last."""
        return self._last_score

    @last_score.setter
    def last_score(self, score: float) -> None:
        self._last_score = self._step, score

    def step_schedules(self) -> None:
        """Move schedules on by a step."""
        self._step += 1

    def __call__(
        self, key: Any, weights: Any, gradient: Any, *, lr_scale: float = 1.0
    ) -> tuple[Any, Any]:
        """Update a parameter in place, and set its gradient to zeros.

        Args:
            key: names the parameter: the number of a node, and a name.
            weights: a NumPy or CuPy array.
            gradient: of the same shape, dtype and device.
            lr_scale: by what the learning rate is multiplied.

        Returns:
            Both arrays.

        Raises:
            TypeError: ``weights`` is no array of float32 or float64.
            ValueError: an option is out of bounds, or the gradient does not fit. Nothing was
                changed.
        """
        if not len(gradient):
            return weights, gradient
        learn_rate, decay, limit = (
            self._now(name, key) for name in ("learn_rate", "L2", "grad_clip")
        )
        param, rule = self._of(key, weights)
        lr = lr_scale * learn_rate
        own = {"lr": lr, "weight_decay": 0.0 if self._is_decoupled else decay}
        rule.param_groups[0].update(own, **self._own(key, rule.state.get(param, {})))
        param.grad = self._clipped(gradient, weights, own["weight_decay"], limit)
        rule.step()
        param.grad = None
        with gpu.on(device_of(weights)):
            if self._is_decoupled and decay:
                weights -= lr * decay * weights
            gradient[...] = 0
            if self.averages is not None:
                self._average(key, weights, rule.state[param]["step"])
        return weights, gradient

    def _rule(self, param: Parameter) -> optim.FusedOptimizer:
        """Return what steps a parameter."""
        raise NotImplementedError

    def _own(self, key: Any, slots: Any) -> dict[str, Any]:  # noqa: ARG002 - others' do
        """Return the options of the rule for the next step of a parameter."""
        return {}

    def _now(self, name: str, key: Any) -> float:
        value = self._options[name]
        if callable(value):
            return float(value(self._step, key=key, last_score=self._last_score))
        return value

    def _of(self, key: Any, weights: Any) -> tuple[Parameter, optim.FusedOptimizer]:
        """Return what stands for a parameter, made anew where that has another shape or place."""
        known = self._steps.get(key)
        if known is not None:
            data = known[0].data
            if (data.shape, data.dtype) == (weights.shape, weights.dtype):
                known[0].data = weights
                return known
            if self.averages is not None:
                self.averages.pop(key, None)
        param = Parameter(weights, name=str(key))
        self._steps[key] = param, self._rule(param)
        return self._steps[key]

    @staticmethod
    def _clipped(gradient: Any, weights: Any, decay: float, limit: float) -> Any:
        """Return a gradient of no larger norm, as it is if it is small enough."""
        if not limit:
            return gradient
        with gpu.on(device_of(gradient)):
            decayed = gradient + decay * weights if decay else gradient
            norm = float((decayed**2).sum()) ** 0.5
            # The rule adds the decay itself, so that it is scaled here with the gradient.
            if norm < limit or norm == 0:
                return gradient
            clipped = decayed * (limit / norm)
            return clipped - decay * weights if decay else clipped

    def _average(self, key: Any, weights: Any, t: int) -> None:
        assert self.averages is not None
        average = self.averages.get(key)
        if average is None:
            average = self.averages[key] = weights * 0
        decay = min((1 + t) / (10 + t), MOST_DECAY)
        average -= (1 - decay) * (average - weights)


class Adam(Optimizer):
    """Adam, whose ε is added to the root of the second moment before that is corrected.

    :class:`lucid_gpu.optim.Adam` with ``eps / sqrt(1 − β2ᵗ)`` at step t.

    Args:
        learn_rate: the learning rate η ≥ 0.
        L2: λ ≥ 0.
        beta1: the decay rate of the first moment, in [0, 1).
        beta2: the decay rate of the second moment, in [0, 1).
        eps: ε ≥ 0.
        grad_clip: the largest norm of a gradient; 0 clips none.
        L2_is_weight_decay: as for :class:`Optimizer`.
        use_averages: as for :class:`Optimizer`.

    Example:
        >>> import numpy as np
        >>> w, g = np.ones(1, np.float32), np.ones(1, np.float32)
        >>> optimizer = Adam(learn_rate=0.1)
        >>> w, g = optimizer((0, "W"), w, g)
        >>> f"{w[0]:.4f}", g.tolist()
        ('0.9000', [0.0])
    """

    def __init__(
        self,
        learn_rate: Schedule = 0.001,
        *,
        L2: Schedule = 0.0,  # noqa: N803
        beta1: Schedule = 0.9,
        beta2: Schedule = 0.999,
        eps: Schedule = 1e-8,
        grad_clip: Schedule = 1.0,
        L2_is_weight_decay: bool = True,  # noqa: N803
        use_averages: bool = True,
    ) -> None:
        super().__init__(
            learn_rate,
            L2=L2,
            grad_clip=grad_clip,
            L2_is_weight_decay=L2_is_weight_decay,
            use_averages=use_averages,
        )
        self._options |= {"beta1": beta1, "beta2": beta2, "eps": eps}

    def _rule(self, param: Parameter) -> optim.FusedOptimizer:
        return optim.Adam([param])

    def _own(self, key: Any, slots: Any) -> dict[str, Any]:
        beta1, beta2, eps = (self._now(name, key) for name in ("beta1", "beta2", "eps"))
        correction = 1 - beta2 ** (slots.get("step", 0) + 1)
        return {"betas": (beta1, beta2), "eps": eps / correction**0.5}


class SGD(Optimizer):
    """Stochastic gradient descent without momentum: :class:`lucid_gpu.optim.SGD`.

    The arguments are those of :class:`Optimizer`.

    Example:
        >>> import numpy as np
        >>> w, g = np.ones(1, np.float32), np.full(1, 0.5, np.float32)
        >>> w, g = SGD(learn_rate=0.5)((0, "W"), w, g)
        >>> w.tolist()
        [0.75]
    """

    def _rule(self, param: Parameter) -> optim.FusedOptimizer:
        return optim.SGD([param])
