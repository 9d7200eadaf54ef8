"""The small Tensor library's optimizers: its arguments, mapped onto the rules of this package."""

from __future__ import annotations

from typing import Any

from lucid_gpu import optim


class Optimizer(optim.Optimizer):
    """Base class of optimizers that keep their options themselves; a subclass adds ``step``.

    Args:
        params: the parameters.

    Example:
        >>> class Descent(Optimizer):
        ...     def __init__(self, params, lr):
        ...         super().__init__(params)
        ...         self.lr = lr
        ...
        ...     def step(self):
        ...         for param in self.param_groups[0]["params"]:
        ...             param.data -= self.lr * param.grad
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> w.grad = 2 * w.data
        >>> optimizer = Descent([w], lr=0.25)
        >>> optimizer.step()
        >>> optimizer.reset_grad()
        >>> w.numpy().tolist(), w.grad
        ([0.5], None)
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})


class SGD(optim.SGD):
    """Stochastic gradient descent whose momentum is a moving average of the gradients.

    With the gradient g, from ``u = 0``::

        θ ← θ(1 − ηλ)
        u ← μ·u + (1 − μ)·g
        θ ← θ − η·u

    :class:`lucid_gpu.optim.SGD` with ``dampening=None``, which dampens by the momentum itself,
    ``dampen_first=True`` and ``decoupled_weight_decay=True``.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts.
        lr: the learning rate η ≥ 0.
        momentum: μ ≥ 0.
        weight_decay: λ ≥ 0.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> w.grad = 0.5 * w.data
        >>> SGD([w], lr=0.1, momentum=0.9, weight_decay=0.2).step()
        >>> f"{w.numpy()[0]:.3f}"
        '0.975'
    """

    def __init__(
        self, params: Any, lr: float = 0.01, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(
            params,
            lr,
            momentum,
            dampening=None,
            weight_decay=weight_decay,
            decoupled_weight_decay=True,
            dampen_first=True,
        )


class Adam(optim.Adam):
    """Adam with L2 decay and its two decay rates as arguments of their own.

    :class:`lucid_gpu.optim.Adam` with ``betas=(beta1, beta2)``.

    Args:
        params: parameters, ``(name, parameter)`` pairs or group dicts.
        lr: the learning rate η ≥ 0.
        beta1: the decay rate of the first moment, in [0, 1).
        beta2: the decay rate of the second moment, in [0, 1).
        eps: ε ≥ 0, added to the denominator.
        weight_decay: λ ≥ 0, added to the gradient as λθ.

    Example:
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> w.grad = 2 * w.data
        >>> Adam([w], lr=0.1, beta1=0.9, beta2=0.99).step()
        >>> f"{w.numpy()[0]:.4f}"
        '0.9000'
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, (beta1, beta2), eps, weight_decay)
