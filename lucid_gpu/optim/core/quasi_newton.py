"""The iterations of a quasi-Newton method of limited memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu.device import gpu
from lucid_gpu.device.arrays import device_of, is_cupy
from lucid_gpu.optim.core.checks import python_number
from lucid_gpu.optim.core.flat_vector import FlatVector
from lucid_gpu.optim.core.line_search import Point, strong_wolfe
from lucid_gpu.optim.core.memory import Memory

LEAST_CURVATURE = 1e-10
"""Of a pair that is remembered."""


class Found(NamedTuple):
    """What an evaluation found.

    Attributes:
        x: where.
        gradient: there.
        largest: its largest element, by the absolute value.
        total: the sum of their absolute values.
        ys: the change of the gradient times the direction.
        yy: the change of the gradient squared.
    """

    x: Any
    gradient: Any
    largest: float
    total: float
    ys: float
    yy: float


class Search:
    """The iterations of one call.

    Args:
        vector: the parameters.
        closure: evaluates the loss and sets the gradients.
        memory: of earlier moves; it is changed.
        options: of the parameters' groups.

    Attributes:
        result: what the closure returned first.
    """

    def __init__(
        self,
        vector: FlatVector,
        closure: Callable[[], Any],
        memory: Memory,
        options: Mapping[str, Any],
    ) -> None:
        self._vector, self._closure, self._memory, self._options = vector, closure, memory, options
        self._count = 0
        self._has_failed = False
        self._device = "cpu" if vector.home == "cpu" else gpu.default()
        self._warnings = np.geterr()
        self.result: Any = None

    def run(self, x: Any) -> None:
        """Iterate, from where the parameters are."""
        with gpu.on(self._vector.home), np.errstate(all="ignore"):
            self._run(x)

    def _run(self, x: Any) -> None:
        memory, options = self._memory, self._options
        memory.step += 1
        if not self._vector.size:
            self._call()
            return
        point = self._evaluate(x, 0.0)
        if not math.isfinite(point.loss):
            self._go_back()
            return
        memory.best_loss, memory.best_point = point.loss, x
        if point.found.largest <= options["tolerance_grad"]:
            return
        for turn in range(1, options["max_iter"] + 1):
            memory.n_iter += 1
            self._turn(point.found)
            memory.prev_loss = point.loss
            direction = memory.d
            slope, reach = self._vector.numbers(
                self._dot(point.found.gradient, direction), self._largest(direction)
            )
            if not slope <= -options["tolerance_change"]:
                if not math.isfinite(slope):
                    memory.forget()
                return
            is_last = turn == options["max_iter"]
            moved = self._move(point._replace(t=0.0, slope=slope), reach, is_last)
            if moved is None or self._is_done(moved, reach):
                return
            point = moved

    def _turn(self, found: Found) -> None:
        """Take the last move into the history, and choose a direction and how far to go."""
        memory, options = self._memory, self._options
        if memory.d is None:
            memory.d = -found.gradient
            memory.prev_flat_grad = found.gradient
            memory.t = min(1.0, 1.0 / found.total) * options["lr"]
            return
        ys = found.ys * memory.t
        if ys > LEAST_CURVATURE:
            for kept in (memory.old_dirs, memory.old_stps, memory.ro):
                del kept[: max(0, len(kept) + 1 - options["history_size"])]
            memory.old_dirs.append(found.gradient - memory.prev_flat_grad)
            memory.old_stps.append(memory.d * memory.t)
            memory.ro.append(1.0 / ys)
            memory.H_diag = ys / found.yy
        memory.d = self._direction(found.gradient)
        memory.prev_flat_grad = found.gradient
        memory.t = options["lr"]

    def _direction(self, gradient: Any) -> Any:
        """Return the two loops' product of the inverse Hessian and the negative gradient."""
        memory = self._memory
        pairs = list(zip(memory.old_dirs, memory.old_stps, memory.ro, strict=True))
        q, weights = -gradient, []
        for y, s, ro in reversed(pairs):
            weight = self._dot(s, q) * ro
            q -= weight * y
            weights.append(weight)
        q *= memory.H_diag
        for (y, s, ro), weight in zip(pairs, reversed(weights), strict=True):
            q += (weight - self._dot(y, q) * ro) * s
        return q

    def _move(self, start: Point, reach: float, is_last: bool) -> Point | None:
        """Go along the direction; return where, None if this was the last iteration."""
        memory, options, x = self._memory, self._options, start.found.x
        if options["line_search_fn"] is None:
            if not is_last:
                point = self._evaluate(x, memory.t)
                if not math.isfinite(point.loss):
                    self._go_back()
                    return None
                return self._noted(point)
            self._vector.put(x + memory.t * memory.d)
            return None
        most = options["max_eval"] - self._count
        point, _ = strong_wolfe(
            lambda t: self._evaluate(x, t),
            start,
            memory.t,
            reach,
            options["tolerance_change"],
            most,
        )
        memory.t = point.t
        self._vector.put(point.found.x)
        if point.t == 0 and self._has_failed:
            memory.forget()
            return None
        self._noted(point)
        return None if is_last else point

    def _is_done(self, point: Point, reach: float) -> bool:
        memory, options = self._memory, self._options
        is_done: bool = (
            self._count >= options["max_eval"]
            or point.found.largest <= options["tolerance_grad"]
            or reach * abs(point.t) <= options["tolerance_change"]
            or abs(point.loss - memory.prev_loss) < options["tolerance_change"]
        )
        return is_done

    def _noted(self, point: Point) -> Point:
        """Return a point, after noting it if it is the best of this call."""
        if point.loss < self._memory.best_loss:
            self._memory.best_loss, self._memory.best_point = point.loss, point.found.x
        return point

    def _go_back(self) -> None:
        """Give up what led to where the loss is not finite."""
        self._memory.forget()
        if self._memory.best_point is not None:
            self._vector.put(self._memory.best_point)

    def _evaluate(self, x: Any, t: float) -> Point:
        """Return what is at a distance along the direction, in one wait for the device."""
        memory, vector = self._memory, self._vector
        if t != 0:
            x = x + t * memory.d
            vector.put(x)
        loss, is_there = _loss(self._call(), vector.home)
        gradient = vector.gradient()
        asked = [loss] if is_there else []
        asked += [self._largest(gradient), vector.xp.sum(vector.xp.abs(gradient))]
        if memory.d is not None:
            change = gradient - memory.prev_flat_grad
            asked += [self._dot(gradient, memory.d), self._dot(change, memory.d)]
            asked += [self._dot(change, change)]
        numbers = vector.numbers(*asked)
        loss = numbers.pop(0) if is_there else loss
        largest, total, slope, ys, yy = [*numbers, 0.0, 0.0, 0.0][:5]
        if not (math.isfinite(loss) and math.isfinite(total)):
            self._has_failed = True
            loss = math.inf
        return Point(t, loss, slope, Found(x, gradient, largest, total, ys, yy))

    def _call(self) -> Any:
        """Call the closure, on the device and with the warnings of who called the step."""
        with gpu.on(self._device), np.errstate(**self._warnings):
            value = self._closure()
        if self._count == 0:
            self.result = value
        self._count += 1
        self._memory.func_evals += 1
        return value

    def _dot(self, one: Any, other: Any) -> Any:
        return self._vector.xp.dot(one, other)

    def _largest(self, array: Any) -> Any:
        return self._vector.xp.max(self._vector.xp.abs(array))


def _loss(value: Any, home: str) -> tuple[Any, bool]:
    """Return the loss as a number, or as it is if it is on the GPU ``home``; and which of the two.

    Raises:
        TypeError: it is no number.
    """
    if is_cupy(value) and value.size == 1 and device_of(value) == home:
        return value.reshape(()), True
    number = python_number(value)
    if type(number) not in (int, float):
        raise TypeError(
            "the closure of LBFGS must return the loss, a number or an array without dimensions, "
            f"not {value!r:.200}"
        )
    return float(number), False
