"""Gradients changed in place by array code: those on the CPU, and those of 16 bits anywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid_gpu.device import gpu
from lucid_gpu.execution import threads

PIECE_ELEMENTS = 1 << 18
"""What a thread changes before it looks for more."""


def change(grads: Sequence[Any], home: str, how: str, number: Any) -> None:
    """Change arrays of a device in place.

    Args:
        grads: the arrays; none overlap.
        home: where they are.
        how: ``"scale"`` multiplies by the number, ``"bound"`` keeps from −number to number.
        number: a float64 of the device, in an array, or a float. It is rounded once to the dtype of
            an array; to float32 for a product that is then rounded to 16 bits.
    """
    xp, update = gpu.module(home), CHANGES[how]
    if home != "cpu":
        with gpu.on(home), np.errstate(all="ignore"):
            for grad in grads:
                update(xp, grad, number)
        return
    if how == "scale" and number == 1:
        return  # as it is without a GPU, one may look
    waiting = deque(piece for grad in grads for piece in _pieces(grad))

    def work(waiting: deque[Any]) -> None:
        with np.errstate(all="ignore"):
            while True:
                try:
                    piece = waiting.popleft()
                except IndexError:
                    return
                update(xp, piece, number)

    if waiting:
        threads.together(min(threads.thread_count(), len(waiting)), work, waiting)


def _scale(xp: Any, grad: Any, number: Any) -> None:
    dtype = np.float32 if grad.dtype.itemsize == 2 else grad.dtype
    factor = xp.asarray(number).astype(dtype).reshape(())
    if grad.dtype == dtype:
        xp.multiply(grad, factor, out=grad)
    else:
        grad[...] = grad.astype(dtype) * factor


def _bound(xp: Any, grad: Any, number: Any) -> None:
    bound = xp.asarray(number).astype(grad.dtype).reshape(())
    xp.maximum(grad, -bound, out=grad)
    xp.minimum(grad, bound, out=grad)


CHANGES: dict[str, Callable[[Any, Any, Any], None]] = {"scale": _scale, "bound": _bound}


def _pieces(grad: Any) -> list[Any]:
    if not (grad.flags.c_contiguous or grad.flags.f_contiguous):
        return [grad]
    flat = grad.reshape(-1, order="A")
    return [flat[start : start + PIECE_ELEMENTS] for start in range(0, flat.size, PIECE_ELEMENTS)]
