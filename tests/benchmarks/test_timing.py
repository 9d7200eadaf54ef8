import itertools

import pytest

from benchmarks import timing


def test_every_contender_is_sampled_once_a_round_after_a_warm_up():
    calls = []

    def contender(name):
        counter = itertools.count()
        return lambda: calls.append(name) or next(counter)

    samples = timing.interleaved({"a": contender("a"), "b": contender("b")}, 9.0, at_most=2)
    assert calls == ["a", "b", "a", "b", "b", "a"]
    assert samples == {"a": [1, 2], "b": [1, 2]}


def test_the_fewest_rounds_are_taken_even_when_time_is_up():
    samples = timing.interleaved({"a": lambda: 1.0}, seconds=-1.0, at_least=4)
    assert samples == {"a": [1.0] * 4}


def test_a_contender_that_fails_has_no_part_in_what_follows():
    counter = itertools.count()
    contenders = {"a": lambda: 1 / (2 - next(counter)), "b": lambda: 1.0}
    failures = {}
    samples = timing.interleaved(contenders, 9.0, at_most=4, failures=failures)
    assert samples == {"a": [1.0], "b": [1.0] * 4}
    assert failures == {"a": "ZeroDivisionError: division by zero"}


def test_a_failure_that_nobody_takes_in_is_an_error():
    with pytest.raises(ZeroDivisionError):
        timing.interleaved({"a": lambda: 1 / 0}, 9.0)


def test_the_clock_runs_while_the_call_does():
    calls = []
    assert timing.clock(lambda: calls.append(1)) > 0
    assert calls == [1]
