"""The NumPy twin of a rule, applied to a block of arrays."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.execution.plan import TensorGroup, row_fields
from lucid_gpu.execution.rule import FrameScalars, Rule

BLOCK_ELEMENTS = 1 << 17
"""Elements of a block. Measured best with 1 MiB of L2 cache per core."""

ALIGNMENT = 64
"""Bytes of a cache line, at which scratch begins: vector instructions then cross none."""

IDLE = [*FrameScalars()]
"""The scalars of a frame that does nothing."""

_local = threading.local()


class Row(NamedTuple):
    """What is done to the tensors of a row.

    Attributes:
        factor: of the gradient.
        frame: what the frame does ahead of the rule; None if nothing, the factor included.
        scalars: of the rule.
    """

    factor: Any
    frame: FrameScalars | None
    scalars: Any


class RowValues:
    """The scalars of all rows, rounded once."""

    def __init__(self, tensors: TensorGroup) -> None:
        self._rule, self._dtype = tensors.rule, tensors.storage.compute
        self._values = np.zeros((0, len(row_fields(tensors.rule))), self._dtype)
        self._rows: list[tuple[FrameScalars, Any]] = []
        self._is_idle: list[bool] = []
        self._rounds = tensors.storage.rounds
        self._exact_factor = 1.0
        self._factor: Any = self._dtype.type(1)
        self._steps: list[int] = []

    def set(self, rows: npt.NDArray[Any], factor: float = 1.0) -> None:
        """Take the scalars of the next run, and the factor of its gradients."""
        if len(rows) > len(self._values):
            self._values = np.zeros((len(rows), self._values.shape[1]), self._dtype)
            # Views without dimensions: ufuncs take them in half the time of NumPy's scalars.
            split, scalars = len(FrameScalars._fields), len(self._rule.Scalars._fields)
            views = [[own[i, ...] for i in range(len(own))] for own in self._values]
            self._rows = [
                (FrameScalars(*own[:split]), self._rule.Scalars(*own[split : split + scalars]))
                for own in views
            ]
        self._values[: len(rows)] = rows
        if self._rounds:
            self._steps = rows[:, -1].copy().view(np.uint32).tolist()
        if factor != self._exact_factor:
            with np.errstate(over="ignore"):
                self._factor = self._dtype.type(factor)
            self._exact_factor = factor
        frames = rows[:, : len(IDLE)].tolist()
        self._is_idle = [factor == 1 and frame == IDLE for frame in frames]

    def __getitem__(self, row: int) -> Row:
        """Return what is done to the tensors of a row."""
        frame, scalars = self._rows[row]
        return Row(self._factor, None if self._is_idle[row] else frame, scalars)

    def steps(self, row: int) -> int:
        """Return how many steps the tensors of a row have taken."""
        return self._steps[row]


def update(
    tensors: TensorGroup,
    variant: Any,
    row: Row,
    arrays: Sequence[Any],
    *sizes: Any,
) -> None:
    """Update a block of arrays: parameter, gradient and slots, all of the dtype that computes.

    Args:
        tensors: what steps.
        variant: of the rule.
        row: what is done to it.
        arrays: the block.
        sizes: of a rule of two phases, what ``finish`` returned.
    """
    rule, (factor, frame, scalars) = tensors.rule, row
    param, grad, *slots = arrays
    if frame is not None:
        grad = _framed(rule, factor, frame, param, grad)
    work = scratch(rule.scratch, param.dtype)
    if param.ndim == 1:
        work = [memory[: param.size] for memory in work]
    else:
        work = [_shaped(memory, param) for memory in work]
    slots += [None] * (rule.width - len(slots))
    rule.update(scalars, variant, param, grad, *slots, *sizes, *work)


def measure(
    tensors: TensorGroup,
    variant: Any,
    row: Row,
    arrays: Sequence[Any],
) -> list[Any]:
    """Run the first phase of a rule on a flat block, and return what it measures."""
    rule, (factor, frame, scalars) = tensors.rule, row
    assert rule.measure is not None
    param, grad, *slots = arrays
    if frame is not None:
        grad = _framed(rule, factor, frame, param, grad)
    memory = scratch(rule.scratch + 2 + len(rule.sums), param.dtype)  # two of which are the frame's
    memory = [own[: param.size] for own in memory]
    work, measured = memory[: rule.scratch], memory[rule.scratch + 2 :]
    slots += [None] * (rule.width - len(slots))
    rule.measure(scalars, variant, param, grad, *slots, *measured, *work)
    return measured


def finish(
    tensors: TensorGroup,
    variant: Any,
    row: Row,
    totals: npt.NDArray[np.float64],
) -> Any:
    """Return what the second phase takes of the totals of a tensor, rounded once."""
    assert tensors.rule.finish is not None
    number = tensors.rule.finish(row.scalars, variant, totals.tolist())
    return np.asarray(number).astype(tensors.storage.compute)


def _framed(rule: Rule, factor: Any, frame: FrameScalars, param: Any, grad: Any) -> Any:
    """Do what the frame does ahead of a rule, and return the gradient that it leaves."""
    # The product may have the rule's own scratch; what the rule is given, an array of its own.
    spare, *_, own = (_shaped(memory, param) for memory in scratch(rule.scratch + 2, param.dtype))
    if factor != 1:
        grad = np.multiply(grad, factor, out=own)
    if frame.sign != 1:
        grad = np.multiply(frame.sign, grad, out=own)
    if frame.l2 != 0:
        product = np.multiply(frame.l2, param, out=spare)
        grad = np.add(grad, product, out=own)
    if frame.shrink != 1:
        if grad is not own and np.may_share_memory(grad, param):
            grad = np.positive(grad, out=own)
        param *= frame.shrink
    return grad


def _shaped(memory: Any, array: Any) -> Any:
    return memory[: array.size].reshape(array.shape)


def scratch(count: int, dtype: np.dtype[Any]) -> list[Any]:
    """Return uninitialized arrays of a block's size, in memory that this thread keeps."""
    kept: dict[np.dtype[Any], list[Any]] = _local.__dict__.setdefault("scratch", {})
    arrays = kept.setdefault(dtype, [])
    while len(arrays) < count:
        nbytes = BLOCK_ELEMENTS * dtype.itemsize
        memory = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        arrays.append(memory[start : start + nbytes].view(dtype))
    return arrays[:count]
