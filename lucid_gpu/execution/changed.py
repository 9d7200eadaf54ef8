"""Gradients on the CPU, changed in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid_gpu.execution import threads

PIECE_ELEMENTS = 1 << 18
"""What a thread changes before it looks for more."""


def change(grads: Sequence[Any], how: str, number: Any) -> None:
    """Change NumPy arrays in place, as ``kernels/scale.cuh`` does.

    Args:
        grads: the arrays; none overlap.
        how: ``"scale"`` multiplies by the number, ``"bound"`` keeps from −number to number.
        number: a float, or a float64 in an array. It is rounded once to the dtype of an array, or
            for those of 16 bits to float32.
    """
    if how == "scale" and number == 1:
        return  # as it is without a GPU, one may look
    update = CHANGES[how]
    waiting = deque(piece for grad in grads for piece in _pieces(grad))

    def work(waiting: deque[Any]) -> None:
        with np.errstate(all="ignore"):
            while True:
                try:
                    piece = waiting.popleft()
                except IndexError:
                    return
                update(piece, _rounded(piece, number))

    if waiting:
        threads.together(min(threads.thread_count(), len(waiting)), work, waiting)


def _rounded(grad: Any, number: Any) -> Any:
    dtype = np.float32 if grad.dtype.itemsize == 2 else grad.dtype
    return np.asarray(number).astype(dtype).reshape(())


def _scale(grad: Any, factor: Any) -> None:
    if grad.dtype == factor.dtype:
        np.multiply(grad, factor, out=grad)
    else:
        grad[...] = grad.astype(factor.dtype) * factor


def _bound(grad: Any, bound: Any) -> None:
    own = bound.astype(grad.dtype)
    np.maximum(grad, -own, out=grad)
    np.minimum(grad, own, out=grad)


CHANGES: dict[str, Callable[[Any, Any], None]] = {"scale": _scale, "bound": _bound}


def _pieces(grad: Any) -> list[Any]:
    if not (grad.flags.c_contiguous or grad.flags.f_contiguous):
        return [grad]
    flat = grad.reshape(-1, order="A")
    return [flat[start : start + PIECE_ELEMENTS] for start in range(0, flat.size, PIECE_ELEMENTS)]
