"""bounds: hyperparameters and the errors that name option, bound and value."""

from __future__ import annotations

import fractions
import math
import types

import numpy as np
import pytest

from lucid_gpu.optim.core import checks


@pytest.mark.parametrize(
    "value", [0, 1, 2.5, np.float32(0.5), np.int8(3), fractions.Fraction(1, 3), 1e300]
)
def test_any_real_number_is_a_number(value):
    checks.nonnegative({"x": value}, "x")
    checks.finite({"x": value}, "x")


@pytest.mark.parametrize("value", ["1", None, 1j, True, np.bool_(True), [1], np.ones(1)])
def test_what_is_no_real_number_is_a_type_error(value):
    with pytest.raises(TypeError, match="x must be a number, not "):
        checks.finite({"x": value}, "x")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), 10**400])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(ValueError, match="x must be finite, not "):
        checks.finite({"x": value}, "x")


@pytest.mark.parametrize("kind", [int, fractions.Fraction])
def test_a_number_that_no_text_can_hold_is_called_by_its_kind(kind):
    with pytest.raises(ValueError, match=f"x must be finite, not a {kind.__name__} of thousands"):
        checks.finite({"x": kind(-(10**5000))}, "x")


def test_what_is_checked_becomes_a_python_number_in_a_dict_alone():
    options = {"x": np.float32(0.5), "y": np.float32(0.5)}
    checks.nonnegative(options, "x")
    assert [type(value) for value in options.values()] == [float, np.float32]
    checks.nonnegative(types.MappingProxyType(options), "y")
    assert type(options["y"]) is np.float32


def test_what_is_a_python_number_already_stays_the_object_that_it_is():
    rates = (0.5, 0.25)
    options = {"x": 10**3, "rates": rates}
    checks.finite(options, "x")
    checks.decay_rates(options, "rates", 2)
    assert options["rates"] is rates


def test_finite_takes_negative_numbers():
    checks.finite({"x": -1}, "x")


def test_the_first_option_out_of_bounds_is_named():
    with pytest.raises(ValueError, match="second must be >= 0, not -1"):
        checks.nonnegative({"first": 0, "second": -1, "third": -2}, "first", "second", "third")


@pytest.mark.parametrize("rates", [(0.9,), (0.9, 0.9, 0.9), 0.9, "0.9", {0.1, 0.2}, None])
def test_decay_rates_are_a_sequence_of_the_right_length(rates):
    with pytest.raises(ValueError, match=r"betas must be a tuple of 2 numbers in \[0, 1\), not "):
        checks.decay_rates({"betas": rates}, "betas", 2)


def test_decay_rates_may_come_in_a_list():
    checks.decay_rates({"betas": [0, 0.999]}, "betas", 2)


@pytest.mark.parametrize("value", [1, 0, "False", None, np.True_])
def test_a_switch_is_a_bool_and_no_number(value):
    with pytest.raises(ValueError, match="on must be one of False, True, not "):
        checks.switches({"on": value}, "on")


def test_one_of_lists_the_choices():
    with pytest.raises(ValueError, match="how must be one of 'a', 2, not 'b'"):
        checks.one_of({"how": "b"}, "how", ("a", 2))


@pytest.mark.parametrize("value", [-0.1, 1, 1.5])
def test_a_rate_is_at_least_0_and_below_1(value):
    with pytest.raises(ValueError, match=rf"^x must be >= 0 and < 1, not {value}$"):
        checks.rates({"y": 0, "x": value}, "y", "x")


def test_a_rate_becomes_a_python_number():
    options = {"x": np.float32(0.5)}
    checks.rates(options, "x")
    assert type(options["x"]) is float


@pytest.mark.parametrize("pair", [(1,), (1, 2, 3), 1, "12", None])
def test_finite_numbers_are_a_sequence_of_the_right_length(pair):
    with pytest.raises(ValueError, match="x must be a tuple of 2 numbers, not "):
        checks.finite_numbers({"x": pair}, "x", 2)


def test_the_number_of_a_pair_that_is_not_finite_is_named():
    with pytest.raises(ValueError, match=r"x\[1\] must be finite, not inf"):
        checks.finite_numbers({"x": (-1, math.inf)}, "x", 2)


def test_finite_numbers_become_python_numbers():
    options = {"x": np.array([-0.5, 2], np.float32)}
    checks.finite_numbers(options, "x", 2)
    assert [(type(each), each) for each in options["x"]] == [(float, -0.5), (float, 2.0)]


@pytest.mark.parametrize(("value", "kept"), [(3, 3), (3.0, 3), (np.float32(0), 0), (9, 9)])
def test_a_whole_number_is_kept_as_an_int(value, kept):
    options = {"x": value}
    checks.whole_numbers(options, "x", least=0, most=9)
    assert options["x"] == kept
    assert type(options["x"]) is int


@pytest.mark.parametrize("value", [-1, 10, 2.5])
def test_what_is_no_whole_number_within_bounds_is_refused(value):
    with pytest.raises(ValueError, match=f"x must be a whole number >= 0 and <= 9, not {value}"):
        checks.whole_numbers({"x": value}, "x", least=0, most=9)


def test_whole_numbers_may_have_no_upper_bound():
    with pytest.raises(ValueError, match="x must be a whole number >= 1, not 0"):
        checks.whole_numbers({"x": 0}, "x", least=1, most=math.inf)
