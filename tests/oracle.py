"""Textbook loops in plain Python floats: what the optimizers must compute, written from the papers.

Each takes the elements of one parameter, the gradients of each step and the options of a group,
and returns the elements after every step. Nothing here knows the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

Steps = Sequence[Sequence[float]]


def elementwise(rule: Callable[..., Iterator[float]]) -> Callable[..., list[list[float]]]:
    """Return the loop over all elements of one that yields an element after every step."""

    def loop(start: Sequence[float], gradients: Steps, **options) -> list[list[float]]:
        own = zip(start, zip(*gradients, strict=True), strict=True)
        columns = [list(rule(theta, steps, **options)) for theta, steps in own]
        return [list(row) for row in zip(*columns, strict=True)]

    return loop


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


@elementwise
def adagrad(
    theta, gradients, *, lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize
):
    """Adagrad (Duchi, Hazan & Singer 2011)."""
    total = initial_accumulator_value
    for t, gradient in enumerate(gradients, 1):
        g = (-gradient if maximize else gradient) + weight_decay * theta
        total += g**2
        theta -= lr / (1 + (t - 1) * lr_decay) * g / (math.sqrt(total) + eps)
        yield theta


@elementwise
def nadam(
    theta,
    gradients,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    momentum_decay,
    decoupled_weight_decay,
    maximize,
):
    """NAdam (Dozat 2016), with the schedule of μ that the paper proposes."""
    beta1, beta2 = betas
    m = v = 0.0
    product = 1.0
    for t, gradient in enumerate(gradients, 1):
        g = -gradient if maximize else gradient
        if decoupled_weight_decay:
            theta *= 1 - lr * weight_decay
        else:
            g += weight_decay * theta
        now, later = (beta1 * (1 - 0.96 ** (k * momentum_decay) / 2) for k in (t, t + 1))
        product *= now
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = later * m / (1 - product * later) + (1 - now) * g / (1 - product)
        theta -= lr * m_hat / (math.sqrt(v / (1 - beta2**t)) + eps)
        yield theta


@elementwise
def radam(theta, gradients, *, lr, betas, eps, weight_decay, decoupled_weight_decay, maximize):
    """RAdam (Liu et al. 2019), rectified where ρ > 5."""
    beta1, beta2 = betas
    m = v = 0.0
    longest = 2 / (1 - beta2) - 1
    for t, gradient in enumerate(gradients, 1):
        g = -gradient if maximize else gradient
        if decoupled_weight_decay:
            theta *= 1 - lr * weight_decay
        else:
            g += weight_decay * theta
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat = m / (1 - beta1**t)
        rho = longest - 2 * t * beta2**t / (1 - beta2**t)
        if rho > 5:
            above = (rho - 4) * (rho - 2) * longest
            below = (longest - 4) * (longest - 2) * rho
            adaptive = math.sqrt(1 - beta2**t) / (math.sqrt(v) + eps)
            theta -= lr * m_hat * math.sqrt(above / below) * adaptive
        else:
            theta -= lr * m_hat
        yield theta


@elementwise
def rmsprop(
    theta,
    gradients,
    *,
    lr,
    alpha,
    eps,
    weight_decay,
    momentum,
    centered,
    eps_inside_sqrt,
    maximize,
):
    """RMSprop (Hinton 2012), centered as in Graves 2013."""
    square = mean = buffer = 0.0
    for gradient in gradients:
        g = (-gradient if maximize else gradient) + weight_decay * theta
        square = alpha * square + (1 - alpha) * g**2
        mean = alpha * mean + (1 - alpha) * g
        variance = square - mean**2 if centered else square
        root = math.sqrt(variance + eps) if eps_inside_sqrt else math.sqrt(variance) + eps
        buffer = momentum * buffer + g / root
        theta -= lr * buffer
        yield theta


@elementwise
def adamax(theta, gradients, *, lr, betas, eps, weight_decay, maximize):
    """Adamax (Kingma & Ba 2014, section 7.1), with ε beside the gradient."""
    beta1, beta2 = betas
    m = norm = 0.0
    for t, gradient in enumerate(gradients, 1):
        g = (-gradient if maximize else gradient) + weight_decay * theta
        m = beta1 * m + (1 - beta1) * g
        norm = max(beta2 * norm, abs(g) + eps)
        theta -= lr / (1 - beta1**t) * m / norm
        yield theta


@elementwise
def adadelta(theta, gradients, *, lr, rho, eps, weight_decay, maximize):
    """Adadelta (Zeiler 2012), algorithm 1."""
    mean_gradient = mean_step = 0.0
    for gradient in gradients:
        g = (-gradient if maximize else gradient) + weight_decay * theta
        mean_gradient = rho * mean_gradient + (1 - rho) * g**2
        step = -math.sqrt(mean_step + eps) / math.sqrt(mean_gradient + eps) * g
        mean_step = rho * mean_step + (1 - rho) * step**2
        theta += lr * step
        yield theta


@elementwise
def rprop(theta, gradients, *, lr, etas, step_sizes, maximize):
    """iRprop⁻ (Igel & Hüsken 2000)."""
    size, previous = lr, 0.0
    for gradient in gradients:
        g = -gradient if maximize else gradient
        if g * previous > 0:
            size *= etas[1]
        elif g * previous < 0:
            size *= etas[0]
            g = 0.0
        size = min(max(size, step_sizes[0]), step_sizes[1])
        if g != 0:
            theta -= math.copysign(size, g)
        previous = g
        yield theta


@elementwise
def asgd(theta, gradients, *, lr, lambd, alpha, t0, weight_decay, maximize):
    """SGD with the learning rate and the decay of Bottou; what is averaged follows from it."""
    for t, gradient in enumerate(gradients):
        g = (-gradient if maximize else gradient) + weight_decay * theta
        eta = lr * (1 + lambd * lr * t) ** -alpha
        theta = (1 - lambd * eta) * theta - eta * g
        yield theta


@elementwise
def lion(theta, gradients, *, lr, betas, weight_decay, maximize):
    """Lion (Chen et al. 2023), algorithm 2."""
    beta1, beta2 = betas
    m = 0.0
    for gradient in gradients:
        g = -gradient if maximize else gradient
        c = beta1 * m + (1 - beta1) * g
        theta -= lr * ((c > 0) - (c < 0) + weight_decay * theta)
        m = beta2 * m + (1 - beta2) * g
        yield theta


@elementwise
def adan(theta, gradients, *, lr, betas, eps, weight_decay, maximize):
    """Adan (Xie et al. 2022), with the correction of biases and rates counted from 1 downwards."""
    beta1, beta2, beta3 = betas
    m = q = v = 0.0
    previous = None
    for t, gradient in enumerate(gradients, 1):
        g = -gradient if maximize else gradient
        change = 0.0 if previous is None else g - previous
        m = beta1 * m + (1 - beta1) * g
        q = beta2 * q + (1 - beta2) * change
        v = beta3 * v + (1 - beta3) * (g + beta2 * change) ** 2
        m_hat, q_hat, v_hat = m / (1 - beta1**t), q / (1 - beta2**t), v / (1 - beta3**t)
        theta -= lr * (m_hat + beta2 * q_hat) / (math.sqrt(v_hat) + eps)
        theta /= 1 + lr * weight_decay
        previous = g
        yield theta


def free_of_schedule(theta, slopes, beta, *, lr, warmup_steps, r, weight_lr_power):
    """The three sequences of Defazio et al. 2024: x the average, z the iterate, y between them."""
    x = y = z = theta
    total = largest = 0.0
    for t, slope in enumerate(slopes, 1):
        rate = lr * min(1, t / warmup_steps) if warmup_steps else lr
        largest = max(largest, rate)
        weight = t**r * largest**weight_lr_power
        total += weight
        z -= rate * slope(y)
        part = weight / total if total else 0.0
        x = (1 - part) * x + part * z
        y = (1 - beta) * z + beta * x
        yield y


@elementwise
def adamw_schedule_free(theta, gradients, *, betas, eps, weight_decay, maximize, **averaging):
    """Schedule-free AdamW (Defazio et al. 2024), algorithm 1, without a warm-up of its own."""
    v = 0.0

    def slope(y, t, gradient):
        nonlocal v
        g = -gradient if maximize else gradient
        v = betas[1] * v + (1 - betas[1]) * g**2
        return g / (math.sqrt(v / (1 - betas[1] ** t)) + eps) + weight_decay * y

    slopes = [partial(slope, t=t, gradient=g) for t, g in enumerate(gradients, 1)]
    yield from free_of_schedule(theta, slopes, betas[0], **averaging)


@elementwise
def sgd_schedule_free(theta, gradients, *, momentum, weight_decay, maximize, **averaging):
    """Schedule-free SGD (Defazio et al. 2024)."""
    signed = [-g if maximize else g for g in gradients]
    slopes = [lambda y, g=g: g + weight_decay * y for g in signed]
    yield from free_of_schedule(theta, slopes, momentum, **averaging)


def norm(values):
    """The Euclidean norm."""
    return math.sqrt(math.fsum(x * x for x in values))


def lamb(
    start,
    gradients,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    bias_correction,
    grad_averaging,
    always_adapt,
    maximize,
):
    """LAMB (You et al. 2020) with φ the identity."""
    theta, history = list(start), []
    beta1, beta2 = betas
    m, v = [0.0] * len(theta), [0.0] * len(theta)
    share = 1 - beta1 if grad_averaging else 1
    for t, step in enumerate(gradients, 1):
        signed = [-g if maximize else g for g in step]
        m = [beta1 * a + share * g for a, g in zip(m, signed, strict=True)]
        v = [beta2 * b + (1 - beta2) * g**2 for b, g in zip(v, signed, strict=True)]
        k1, k2 = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1, 1)
        u = [
            a / k1 / (math.sqrt(b / k2) + eps) + weight_decay * x
            for a, b, x in zip(m, v, theta, strict=True)
        ]
        size = lr
        if (weight_decay or always_adapt) and norm(theta) and norm(u):
            size *= norm(theta) / norm(u)
        theta = [x - size * d for x, d in zip(theta, u, strict=True)]
        history.append(theta)
    return history


def lars(
    start,
    gradients,
    *,
    lr,
    momentum,
    dampening,
    weight_decay,
    nesterov,
    trust_coefficient,
    eps,
    maximize,
):
    """LARS (You, Gitman & Ginsburg 2017)."""
    theta, history, buffer = list(start), [], None
    for step in gradients:
        g = [-x if maximize else x for x in step]
        ratio = 1.0
        if trust_coefficient is not None and norm(theta) and norm(g):
            below = norm(g) + weight_decay * norm(theta) + eps
            ratio = trust_coefficient * norm(theta) / below
        h = [ratio * (a + weight_decay * x) for a, x in zip(g, theta, strict=True)]
        if momentum:
            if buffer is None:
                buffer = h
            else:
                buffer = [
                    momentum * b + (1 - dampening) * a for b, a in zip(buffer, h, strict=True)
                ]
            ahead = [a + momentum * b for a, b in zip(h, buffer, strict=True)]
            h = ahead if nesterov else buffer
        theta = [x - lr * d for x, d in zip(theta, h, strict=True)]
        history.append(theta)
    return history


ORACLES: dict[str, Callable[..., list[list[float]]]] = {
    "ASGD": asgd,
    "Adadelta": adadelta,
    "Adagrad": adagrad,
    "Adam": adam,
    "AdamW": adam,
    "AdamWScheduleFree": adamw_schedule_free,
    "Adamax": adamax,
    "Adan": adan,
    "LAMB": lamb,
    "LARS": lars,
    "Lion": lion,
    "NAdam": nadam,
    "RAdam": radam,
    "RMSprop": rmsprop,
    "Rprop": rprop,
    "SGD": sgd,
    "SGDScheduleFree": sgd_schedule_free,
}
"""The loop of each exported optimizer."""
