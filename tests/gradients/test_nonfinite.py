"""Gradients that are not finite are named: now, or as soon as it is known without a wait."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from lucid_gpu.device import gpu
from lucid_gpu.gradients import clip_grad_norm_, nonfinite, nonfinite_gradients
from lucid_gpu.optim import SGD
from tests.gradients.given import params

POISONED = [np.ones(3), np.array([1, np.nan, np.inf]), None, np.array([-np.inf])]


@pytest.fixture(autouse=True)
def _no_reports():
    nonfinite._reports.clear()
    yield
    nonfinite._reports.clear()


def clip(own):
    """Clip, and return what is warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip_grad_norm_(own, 1.0, on_nonfinite="report_late")
    return [str(warning.message) for warning in caught]


def test_the_parameters_are_named(device):
    own = params(POISONED, device)
    assert nonfinite_gradients(own) == nonfinite_gradients(SGD(own)) == ["b", "d"]
    assert nonfinite_gradients(own[:1]) == nonfinite_gradients(own[2:3]) == []


def test_parameters_without_names_are_named_by_their_position():
    own = params(POISONED)
    for param in own:
        param.name = None
    assert nonfinite_gradients(own) == ["1", "3"]


def test_on_the_cpu_they_are_reported_at_once():
    (warning,) = clip(params(POISONED))
    assert "2 non-finite elements in 'b', 1 non-finite elements in 'd'" in warning
    assert clip(params([np.ones(3)])) == []


def test_on_a_gpu_they_are_reported_by_a_later_call_and_never_waited_for(emulated):
    emulated.lazy = True
    stream = gpu.cupy().cuda.get_current_stream()
    bad, good = params(POISONED, "cuda:0"), params([np.ones(3)], "cuda:0")
    stream.synchronize()
    before = emulated.record.synchronizations
    assert clip(bad) == clip(good) == []
    assert emulated.record.synchronizations == before
    stream.synchronize()
    (warning,) = clip(good)
    assert "2 non-finite elements in 'b'" in warning
    stream.synchronize()
    assert clip(good) == []


def test_many_of_them_are_counted():
    own = params([np.full(2, np.nan)] * 10)
    (warning,) = clip(own)
    assert warning.count("non-finite elements in") == 8
    assert warning.endswith("2 more")


def test_the_warning_points_at_the_caller():
    with pytest.warns(UserWarning, match="not finite") as caught:
        clip_grad_norm_(params(POISONED), 1.0, on_nonfinite="report_late")
    assert caught[0].filename == __file__
