"""Gradients of several parts of a batch, added up."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.gradients.inputs import listed, named_parameters
from lucid_gpu.optim.core.checks import python_number
from lucid_gpu.optim.core.tensors import misfits, require, unstrange, unwritable


def accumulate(parameters: Any, grads: Iterable[Any], weight: float = 1) -> None:
    """Add gradients of another part of a batch: g ← g + weight · grad.

    Where a parameter has no gradient it gets one, in memory of its own; otherwise it is changed in
    place. To have the gradient of a mean over parts of unequal size, give each as the gradient of
    its mean and as weight its share of the whole: its number of samples, or tokens, over that of
    all. Clip, and step, once all parts are in.

    Args:
        parameters: as of :func:`clip_grad_norm_`.
        grads: for each parameter, in order, an array of its shape, dtype and device, or None.
        weight: a finite number.

    Raises:
        TypeError: something is no parameter, or ``weight`` is no number.
        ValueError: there are more or fewer gradients than parameters, one does not fit its
            parameter, or ``weight`` is not finite. Nothing was changed.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([0.0, 0.0])
        >>> for samples, mean in [(3, [1, 2]), (1, [5, 2])]:
        ...     accumulate([w], [np.array(mean, np.float32)], weight=samples / 4)
        >>> w.grad.tolist()
        [2.0, 2.0]
    """
    number = python_number(weight)
    if type(number) not in (int, float):
        raise TypeError(f"weight must be a number, not {weight!r}")
    if not math.isfinite(number):
        raise ValueError(f"weight must be finite, not {weight!r}")
    pairs = named_parameters(parameters)
    given = [unstrange(grad) for grad in listed(grads, "grads", "arrays")]
    if len(given) != len(pairs):
        raise ValueError(
            f"grads has {len(given)} elements for {len(pairs)} parameters: give one each"
        )
    for (name, param), grad in zip(pairs, given, strict=True):
        if grad is None:
            continue
        label = f"the gradient of parameter {name!r}"
        require(misfits(label, grad, as_array(param.data), "shape", "device"))
        wanted = _gradient_dtype(param)
        if grad.dtype != wanted:
            raise ValueError(
                f"{label} has dtype {grad.dtype}, but must have {wanted}: "
                f"cast it with .astype({wanted.name!r})"
            )
        if not getattr(param, "requires_grad", True):
            raise ValueError(f"parameter {name!r} has requires_grad=False and takes no gradient")
        if param.grad is not None:
            require(unwritable(label, unstrange(param.grad)))
    for (_, param), grad in zip(pairs, given, strict=True):
        if grad is not None:
            _add(param, grad, number)


def _gradient_dtype(param: Any) -> np.dtype[Any]:
    """Return the dtype that the gradient of a parameter has, or must have."""
    own = unstrange(param.grad)
    asked = getattr(param, "grad_dtype", None) if own is None else own.dtype
    dtype: np.dtype[Any] = unstrange(param.data).dtype if asked is None else asked
    return dtype


def _add(param: Any, grad: Any, weight: float) -> None:
    home = device_of(grad)
    computes = np.dtype(np.float32) if grad.dtype.itemsize == 2 else grad.dtype
    with gpu.on(home), np.errstate(all="ignore"):
        share = grad.astype(computes, copy=False)
        if weight != 1:
            share = share * computes.type(weight)
        if param.grad is None:
            param.grad = share.astype(grad.dtype, copy=share is grad)
            return
        own = unstrange(param.grad)
        if own.dtype == computes:
            own += share
        else:
            own[...] = own.astype(computes) + share
