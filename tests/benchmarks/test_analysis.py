import math

import pytest

from benchmarks.analysis import findings
from benchmarks.protocol import Measurement


@pytest.fixture
def found():
    rows = [
        Measurement("w", "ours", [1.0, 2.0, 4.0], traffic=8),
        Measurement("w", "slow", [3.0, 6.0, 12.0]),
        Measurement("w", "fast", [1.5, 3.0, 6.0]),
        Measurement("w", "limit", [0.5, 1.0, 2.0]),
        Measurement("w", "ours, other", [2.0, 4.0, 8.0]),
        Measurement("w", "gone", [], missing="not installed"),
        Measurement("v", "fast", [0.1, 0.1, 0.1]),
    ]
    return {(f.measurement.workload, f.measurement.contender): f for f in findings(rows)}


def test_the_ratio_of_a_peer_is_the_median_of_paired_ratios(found):
    assert found["w", "slow"].ratio == 3.0


def test_the_ratio_of_ours_is_that_of_the_best_peer(found):
    assert (found["w", "ours"].best_peer, found["w", "ours"].ratio) == ("fast", 1.5)
    assert found["w", "ours, other"].ratio == 0.75


def test_pairs_cancel_what_disturbs_a_whole_round():
    rows = [Measurement("w", "ours", [1.0, 50.0, 1.0]), Measurement("w", "peer", [2.0, 100.0, 2.0])]
    assert findings(rows)[1].ratio == 2.0


def test_the_share_is_of_the_limit_of_the_same_work(found):
    assert found["w", "ours"].share == 0.5
    assert math.isnan(found["v", "fast"].share)


def test_the_spread_is_between_the_quartiles(found):
    ours = found["w", "ours"]
    assert (ours.low, ours.median, ours.high) == (1.5, 2.0, 3.0)
    assert ours.bandwidth == 4.0


def test_nothing_is_said_of_a_missing_peer(found):
    gone = found["w", "gone"]
    assert all(map(math.isnan, (gone.median, gone.ratio, gone.share, gone.bandwidth)))


def test_work_without_ours_has_no_ratio(found):
    assert math.isnan(found["v", "fast"].ratio)
