"""Parameters with gradients, for tests of what is done to those."""

from __future__ import annotations

import numpy as np

from lucid_gpu import Parameter
from tests.stepping import place


def params(grads, device="cpu", layout="C"):
    """Parameters named a, b, c, … that have these gradients."""
    found = []
    for name, grad in zip("abcdefghij", grads, strict=False):
        array = np.zeros(3) if grad is None else np.asarray(grad)
        placed = place(array, device, layout).view
        found.append(Parameter(placed, name=name))
        if grad is not None:
            found[-1].grad = place(array, device, layout).view
    return found


def values(params):
    return [None if param.grad is None else np.asarray(host(param.grad)) for param in params]


def host(array):
    return array.get() if hasattr(array, "get") else array
