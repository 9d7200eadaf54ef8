"""The line search: the strong Wolfe conditions hold, or the best point is returned."""

from __future__ import annotations

import math

import pytest

from lucid_gpu.optim.core.line_search import CURVATURE, DECREASE, Point, strong_wolfe

LINES = {
    "quadratic": (lambda t: (t - 3) ** 2, lambda t: 2 * (t - 3)),
    "steep": (lambda t: (t - 0.01) ** 2, lambda t: 2 * (t - 0.01)),
    "quartic": (lambda t: (t - 2) ** 4, lambda t: 4 * (t - 2) ** 3),
    "wavy": (lambda t: t * t - 2 * t + math.sin(5 * t) / 5, lambda t: 2 * t - 2 + math.cos(5 * t)),
    "far": (lambda t: math.hypot(1, t - 500), lambda t: (t - 500) / math.hypot(1, t - 500)),
    "walled": (
        lambda t: (t - 1) ** 2 if t < 1.5 else math.inf,
        lambda t: 2 * (t - 1) if t < 1.5 else math.nan,
    ),
}


def search(loss, slope, t, most=25):
    """Search a line; return the start, the point found, the count, and the places evaluated."""
    seen = []

    def evaluate(t):
        seen.append(t)
        return Point(t, loss(t), slope(t))

    start = Point(0.0, loss(0.0), slope(0.0))
    found, count = strong_wolfe(evaluate, start, t, 1.0, 1e-9, most)
    return start, found, count, seen


@pytest.mark.parametrize("t", [1e-3, 0.1, 1.0, 10.0, 1e4])
@pytest.mark.parametrize("name", LINES)
def test_the_conditions_hold_wherever_it_begins(name, t):
    start, found, _, _ = search(*LINES[name], t)
    assert found.loss <= start.loss + DECREASE * found.t * start.slope
    assert abs(found.slope) <= -CURVATURE * start.slope


@pytest.mark.parametrize("name", LINES)
def test_every_evaluation_is_counted_and_there_are_few(name):
    _, _, count, seen = search(*LINES[name], 1.0)
    assert count == len(seen) <= 12


def test_where_the_loss_is_not_finite_it_comes_back_to_the_start():
    start, found, count, _ = search(lambda t: 0.0 if t == 0 else math.inf, lambda t: -1.0, 1.0)
    assert found == start
    assert count == 26


@pytest.mark.parametrize("most", [0, 1, 3])
def test_evaluations_that_run_out_leave_the_best(most):
    start, found, count, seen = search(
        lambda t: (t - 1e-6) ** 2, lambda t: 2 * (t - 1e-6), 10.0, most
    )
    assert count == len(seen) <= most + 1
    assert found.loss <= start.loss


def test_a_bracket_that_no_parameter_feels_is_not_divided():
    loss, slope = (lambda t: 1.0 if t else 0.0), (lambda t: -1.0)
    points = []

    def evaluate(t):
        points.append(Point(t, loss(t), slope(t)))
        return points[-1]

    found, _ = strong_wolfe(evaluate, Point(0.0, 0.0, -1.0), 1.0, 1e-3, 1e-4, 25)
    assert found.t == 0
    assert min(point.t for point in points) * 1e-3 < 1e-4
    assert len(points) < 26


def scripted(points, t, reach=1.0, most=25):
    """Search from loss 0 and slope −1 where evaluations find losses and slopes in turn."""
    seen, waiting = [], list(points)

    def evaluate(t):
        seen.append(t)
        loss, slope = waiting.pop(0)
        return Point(t, loss, slope)

    found, _ = strong_wolfe(evaluate, Point(0.0, 0.0, -1.0), t, reach, 1e-9, most)
    return found, seen


def test_a_loss_that_rises_again_ends_the_growth():
    found, seen = scripted([(-1, -1), (-2, -1), (-1.5, -1), (-3, 0)], 1.0)
    assert seen[0] < seen[1] < seen[3] < seen[2]
    assert found.loss == -3


def test_a_cubic_that_stays_near_an_end_gives_way_to_a_tenth():
    _, seen = scripted([(1e6, 2e6), (0.5, 2e6), (-1, 0)], 1.0)
    assert seen[1] < 0.1
    assert seen[2] == pytest.approx(0.1 * seen[1])
