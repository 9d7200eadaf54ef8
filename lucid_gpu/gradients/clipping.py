"""Gradients clipped by their norm or by value."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.arrays import as_array, device_of
from lucid_gpu.execution.measured import Measured
from lucid_gpu.execution.outcome import EPSILON
from lucid_gpu.gradients.inputs import float_array, gradients_of, listed, nonnegative
from lucid_gpu.gradients.nonfinite import report_arrived, report_later, require_finite
from lucid_gpu.optim.core.checks import python_number


def clip_grad_norm_(
    parameters: Any,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,  # noqa: ARG001
    *,
    on_nonfinite: str | None = None,
) -> Any:
    """Scale gradients in place so that the norm of all of them is at most ``max_norm``.

        N = (Σ |g|ᵖ)^(1/p) over all elements of all gradients, or max |g| for p = inf
        g ← g · min(1, max_norm / (N + 1e-6))

    N and the factor are computed in float64 where the gradients are, and the factor is rounded once
    to the dtype of a gradient (float32 for those of 16 bits). A N that is infinite makes zeros of
    finite gradients, one that is NaN makes all NaN, as in PyTorch.

    Args:
        parameters: an optimizer, a parameter, or an iterable of parameters or of
            ``(name, parameter)`` pairs. Those without a gradient are left out.
        max_norm: at least 0; ``inf`` changes nothing as long as N is finite.
        norm_type: p > 0, or ``inf`` or ``"inf"``. For others than 2 there is a copy of each
            gradient in float64.
        error_if_nonfinite: True waits for N, and raises if it is not finite, with nothing changed.
        foreach: for callers of PyTorch; it changes nothing.
        on_nonfinite: ``"report_late"`` warns of elements that are not finite as soon as their
            counts have arrived on the host, in this call or a later one with that argument, which
            never waits for them.

    Returns:
        N ahead of clipping, an array of no dimension on the device of the first gradient, rounded
        to the widest dtype of the gradients; 0 as float32 on the CPU if there are none.

    Raises:
        TypeError: something is no parameter, or a gradient is no array of float16, bfloat16,
            float32 or float64.
        ValueError: an argument is out of bounds, a gradient cannot be written to, or two parameters
            have the same one.
        RuntimeError: N is not finite, and ``error_if_nonfinite``; or a stream records a CUDA graph.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0, 2.0])
        >>> w.grad = np.array([3, 4], np.float32)
        >>> float(clip_grad_norm_([w], max_norm=1.0))
        5.0
        >>> w.grad.round(3).tolist()
        [0.6000000238418579, 0.800000011920929]

    PyTorch: https://docs.pytorch.org/docs/2.13/generated/torch.nn.utils.clip_grad_norm_.html
    """
    most, p = nonnegative("max_norm", max_norm), _norm_type(norm_type)
    if on_nonfinite not in (None, "report_late"):
        raise ValueError(f"on_nonfinite must be None or 'report_late', not {on_nonfinite!r}")
    names, grads = gradients_of(parameters, "clip_grad_norm_", is_written=True)
    if not grads:
        return np.zeros((), np.float32)
    measured = Measured(grads)
    norm = _norm(measured, grads, p, must_count=error_if_nonfinite or on_nonfinite is not None)
    if error_if_nonfinite:
        require_finite(norm, measured, names, p)
    if on_nonfinite:
        report_later(measured, names)
        report_arrived()
    _clip(measured, norm, most)
    return norm.astype(_widest(grads)).reshape(())


def get_total_norm(
    tensors: Any,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,  # noqa: ARG001
) -> Any:
    """Return the norm of all elements of some arrays, the first half of :func:`clip_grad_norm_`.

    Args:
        tensors: an array, or an iterable of arrays, of NumPy or CuPy; None is left out.
        norm_type: p > 0, or ``inf``.
        error_if_nonfinite: True waits for the norm, and raises if it is not finite.
        foreach: for callers of PyTorch; it changes nothing.

    Returns:
        An array of no dimension, as of :func:`clip_grad_norm_`.

    Raises:
        TypeError: something is no array of float16, bfloat16, float32 or float64.
        ValueError: ``norm_type`` is out of bounds.
        RuntimeError: as of :func:`clip_grad_norm_`.

    Example:
        >>> import numpy as np
        >>> float(get_total_norm([np.array([3.0, 4.0]), np.array([12.0])]))
        13.0
    """
    p = _norm_type(norm_type)
    one = as_array(tensors)
    items = [one] if one is not None else listed(tensors, "tensors", "arrays")
    pairs = [(f"tensor {i}", item) for i, item in enumerate(items) if item is not None]
    grads = [float_array(name, item) for name, item in pairs]
    gpu.refuse_capture("get_total_norm", {device_of(grad) for grad in grads})
    if not grads:
        return np.zeros((), np.float32)
    measured = Measured(grads)
    norm = _norm(measured, grads, p, must_count=error_if_nonfinite)
    if error_if_nonfinite:
        require_finite(norm, measured, [name for name, _ in pairs], p)
    return norm.astype(_widest(grads)).reshape(())


def clip_grads_with_norm_(
    parameters: Any,
    max_norm: float,
    total_norm: Any,
    foreach: bool | None = None,  # noqa: ARG001
) -> None:
    """Scale gradients in place by min(1, max_norm / (total_norm + 1e-6)).

    The second half of :func:`clip_grad_norm_`, for a norm that is known already: of the gradients
    of all processes, for example.

    Args:
        parameters: as of :func:`clip_grad_norm_`.
        max_norm: at least 0.
        total_norm: a number, or an array of one element on any device.
        foreach: for callers of PyTorch; it changes nothing.

    Raises:
        TypeError: as of :func:`clip_grad_norm_`, or ``total_norm`` is no number.
        ValueError: as of :func:`clip_grad_norm_`.
        RuntimeError: a stream records a CUDA graph.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0])
        >>> w.grad = np.array([4.0], np.float32)
        >>> clip_grads_with_norm_([w], max_norm=2.0, total_norm=8.0)
        >>> w.grad.round(3).tolist()
        [1.0]
    """
    most = nonnegative("max_norm", max_norm)
    norm = as_array(total_norm)
    if norm is None:
        number = python_number(total_norm)
        if type(number) not in (int, float):
            raise TypeError(f"total_norm must be a number, not {total_norm!r}")
        norm = np.array(number, np.float64)
    if norm.size != 1 or norm.dtype.kind == "c":
        raise TypeError(f"total_norm must be one real number, not an array of shape {norm.shape}")
    _, grads = gradients_of(parameters, "clip_grads_with_norm_", is_written=True)
    if grads:
        measured = Measured(grads)
        home = transfer.to(norm, measured.home)
        with gpu.on(measured.home):
            _clip(measured, home.astype(np.float64).reshape(1), most)


def clip_grad_value_(
    parameters: Any,
    clip_value: float,
    foreach: bool | None = None,  # noqa: ARG001
) -> None:
    """Bring every element of the gradients, in place, to the nearest from −c to c; NaN stays.

    Args:
        parameters: as of :func:`clip_grad_norm_`.
        clip_value: c, at least 0.
        foreach: for callers of PyTorch; it changes nothing.

    Raises:
        TypeError: as of :func:`clip_grad_norm_`.
        ValueError: as of :func:`clip_grad_norm_`. (PyTorch takes a negative c, and sets every
            element to it.)
        RuntimeError: a stream records a CUDA graph.

    Example:
        >>> import numpy as np
        >>> from lucid_gpu import Parameter
        >>> w = Parameter([1.0, 2.0])
        >>> w.grad = np.array([-3, 0.25], np.float32)
        >>> clip_grad_value_(w, 0.5)
        >>> w.grad.tolist()
        [-0.5, 0.25]
    """
    most = nonnegative("clip_value", clip_value)
    _, grads = gradients_of(parameters, "clip_grad_value_", is_written=True)
    if grads:
        Measured(grads).change("bound", most)


def _norm(measured: Measured, grads: Sequence[Any], p: float, must_count: bool) -> Any:
    """Return the norm of gradients: an array of one float64 at home."""
    if p == 2 or must_count:
        measured.measure()
    with gpu.on(measured.home), np.errstate(all="ignore"):
        if p == 2:
            return gpu.module(measured.home).sqrt(measured.total())
        parts = [transfer.to(_power_norm(grads, home, p), measured.home) for home in measured.homes]
        xp = gpu.module(measured.home)
        return _combined(xp, xp.concatenate(parts), p)


def _power_norm(grads: Sequence[Any], home: str, p: float) -> Any:
    """Return the p-norm of the gradients that are on a device, there."""
    xp = gpu.module(home)
    with gpu.on(home):
        norms = [
            _combined(xp, xp.abs(grad.astype(np.float64)).reshape(-1), p)
            for grad in grads
            if grad is not None and grad.size and device_of(grad) == home
        ]
        return _combined(xp, xp.concatenate(norms or [xp.zeros(1)]), p)


def _combined(xp: Any, norms: Any, p: float) -> Any:
    """Return the p-norm of numbers that are not negative."""
    if p == math.inf:
        return xp.max(norms, keepdims=True)
    return xp.sum(norms**p, keepdims=True) ** (1 / p)


def _clip(measured: Measured, norm: Any, most: float) -> None:
    xp = gpu.module(measured.home)
    with gpu.on(measured.home), np.errstate(all="ignore"):
        measured.change("scale", xp.minimum(most / (norm + EPSILON), 1.0))


def _widest(grads: Iterable[Any]) -> np.dtype[Any]:
    """Return the dtype that holds the numbers of all gradients."""
    dtypes = {grad.dtype for grad in grads if grad is not None}
    if len(dtypes) == 1:
        return dtypes.pop()  # type: ignore[no-any-return]
    return np.dtype(np.float64 if np.dtype(np.float64) in dtypes else np.float32)


def _norm_type(value: Any) -> float:
    is_named = isinstance(value, str) and value == "inf"
    number = math.inf if is_named else nonnegative("norm_type", value)
    if not number:
        raise ValueError(f"norm_type must be > 0, not {value!r}")
    return number
