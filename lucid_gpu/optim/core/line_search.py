"""A line search that ends where the strong Wolfe conditions hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

DECREASE = 1e-4
"""c1: how much of the decrease that the slope promises there must be."""

CURVATURE = 0.9
"""c2: how much of the slope may be left."""


class Point(NamedTuple):
    """What was found at one place of a line.

    Attributes:
        t: how far along the direction it is.
        loss: there; infinite where it, or the gradient, is not finite.
        slope: of the loss along the direction.
        found: what else the caller wants back.
    """

    t: float
    loss: float
    slope: float
    found: Any = None


def strong_wolfe(
    evaluate: Callable[[float], Point],
    start: Point,
    t: float,
    reach: float,
    tolerance: float,
    most: int,
) -> tuple[Point, int]:
    """Return a point at which the loss is lower and its slope flatter, and how many were evaluated.

    Steps grow until they bracket such a point; then the bracket shrinks, by the cubic through its
    ends. Where the loss is not finite, the middle takes the cubic's place. If the evaluations run
    out, the best end of the bracket is returned, which may be ``start``.

    Args:
        evaluate: returns what is at ``t``.
        start: the point at 0, whose slope is negative.
        t: the first step to try.
        reach: the largest element of the direction, by its absolute value.
        tolerance: a bracket whose ends differ by less in every parameter is not divided.
        most: the evaluations after which no other begins, but for the first.

    Source: Nocedal & Wright, "Numerical Optimization", algorithms 3.5 and 3.6, with the
    interpolation and the guards of Schmidt's minFunc.
    """
    bracket, count = _bracket(evaluate, start, t, most)
    if len(bracket) == 1:
        return bracket[0], count
    is_stuck = False
    low, high = sorted(bracket, key=lambda point: point.loss)
    while count <= most and abs(high.t - low.t) * reach >= tolerance:
        left, right = sorted((low.t, high.t))
        t = _cubic(low, high, left, right)
        margin = 0.1 * (right - left)
        if min(right - t, t - left) < margin:
            if is_stuck or not left < t < right:
                t = right - margin if abs(t - right) < abs(t - left) else left + margin
                is_stuck = False
            else:
                is_stuck = True
        else:
            is_stuck = False
        new = evaluate(t)
        count += 1
        if new.loss > start.loss + DECREASE * t * start.slope or new.loss >= low.loss:
            low, high = sorted((low, new), key=lambda point: point.loss)
            continue
        if abs(new.slope) <= -CURVATURE * start.slope:
            return new, count
        if new.slope * (high.t - low.t) >= 0:
            high = low
        low = new
    return low, count


def _bracket(
    evaluate: Callable[[float], Point], start: Point, t: float, most: int
) -> tuple[list[Point], int]:
    """Return two points between which there is a good one, or a good one alone."""
    before, new = start, evaluate(t)
    for count in range(1, most + 1):
        is_worse = new.loss > start.loss + DECREASE * new.t * start.slope
        if is_worse or (count > 2 and new.loss >= before.loss):
            return [before, new], count
        if abs(new.slope) <= -CURVATURE * start.slope:
            return [new], count
        if new.slope >= 0:
            return [before, new], count
        least, largest = new.t + 0.01 * (new.t - before.t), 10 * new.t
        t = _cubic(before, new, least, largest)
        before, new = new, evaluate(t)
    return [start, new], max(most, 0) + 1


def _cubic(one: Point, other: Point, least: float, largest: float) -> float:
    """Return where the cubic through two points is least, within bounds; else their middle."""
    middle = (least + largest) / 2
    if not math.isfinite(one.loss + other.loss) or one.t == other.t:
        return middle
    near, far = sorted((one, other), key=lambda point: point.t)
    d1 = near.slope + far.slope - 3 * (near.loss - far.loss) / (near.t - far.t)
    square = d1 * d1 - near.slope * far.slope
    if not square >= 0:
        return middle
    d2 = math.sqrt(square)
    below = far.slope - near.slope + 2 * d2
    if below == 0:
        return middle
    best = far.t - (far.t - near.t) * ((far.slope + d2 - d1) / below)
    return min(max(best, least), largest)
