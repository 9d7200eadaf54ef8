"""Textbook loops in plain Python floats: what the optimizers must compute, written from the papers.

Each takes the elements of one parameter, the gradients of each step and the options of a group,
and returns the elements after every step. Nothing here knows the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Steps = Sequence[Sequence[float]]


def sgd(
    start: Sequence[float],
    gradients: Steps,
    *,
    lr: float,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    decoupled_weight_decay: bool,
    maximize: bool,
    dampen_first: bool,
) -> list[list[float]]:
    """Stochastic gradient descent with momentum (Polyak 1964, Sutskever et al. 2013)."""
    history = []
    theta = list(start)
    buffer: list[float | None] = [0.0 if dampen_first else None] * len(theta)
    for step in gradients:
        for i, gradient in enumerate(step):
            g = -gradient if maximize else gradient
            if decoupled_weight_decay:
                theta[i] *= 1 - lr * weight_decay
            else:
                g += weight_decay * theta[i]
            if momentum != 0:
                b = buffer[i]
                b = g if b is None else momentum * b + (1 - dampening) * g
                buffer[i] = b
                g = g + momentum * b if nesterov else b
            theta[i] -= lr * g
        history.append(list(theta))
    return history


def adam(
    start: Sequence[float],
    gradients: Steps,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    amsgrad: bool | str,
    decoupled_weight_decay: bool,
    maximize: bool,
) -> list[list[float]]:
    """Adam (Kingma & Ba 2014), AdamW (Loshchilov & Hutter 2017), AMSGrad (Reddi et al. 2018)."""
    history = []
    theta = list(start)
    beta1, beta2 = betas
    m, v, largest = ([0.0] * len(theta) for _ in range(3))
    for t, step in enumerate(gradients, 1):
        for i, gradient in enumerate(step):
            g = -gradient if maximize else gradient
            if decoupled_weight_decay:
                theta[i] *= 1 - lr * weight_decay
            else:
                g += weight_decay * theta[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g * g
            m_hat, v_hat = m[i] / (1 - beta1**t), v[i] / (1 - beta2**t)
            if amsgrad is True:
                v_hat = largest[i] = max(largest[i], v_hat)
            elif amsgrad == "raw":
                largest[i] = max(largest[i], v[i])
                v_hat = largest[i] / (1 - beta2**t)
            theta[i] -= lr * m_hat / (math.sqrt(v_hat) + eps)
        history.append(list(theta))
    return history


ORACLES: dict[str, Callable[..., list[list[float]]]] = {"SGD": sgd, "Adam": adam, "AdamW": adam}
"""The loop of each exported optimizer."""
