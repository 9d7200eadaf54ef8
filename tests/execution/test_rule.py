"""Rule: weight decay and maximize ahead of it, the scalars of a row, its slots; Storage."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from lucid_gpu.execution.rule import NO_STEPS, FrameScalars, Rule, Storage


class Scalars(NamedTuple):
    t: float
    lr: float


class Variant(NamedTuple):
    more: bool


RULE = Rule(
    kernel="none",
    functor="None",
    slots=("a", "b", "c"),
    switches=(("more", (False, True)),),
    Variant=Variant,
    Scalars=Scalars,
    scalars=lambda options, t: Scalars(t, options["lr"]),
    first_scalars=lambda options, t: Scalars(-t, options["lr"]),
    used_slots=lambda variant: ("a", "b") if variant.more else ("b",),
    update=None,
)
CARRYING = replace(
    RULE,
    carries=(("x", 1.0), ("y", 2.0)),
    scalars=lambda options, t, carry: (
        Scalars(carry["x"], carry["y"]),
        {"y": carry["y"] + 10, "x": carry["x"] + 1},
    ),
)
OPTIONS = {"lr": 0.5, "weight_decay": 0.25, "decoupled_weight_decay": False, "maximize": False}


@pytest.mark.parametrize(
    ("decay", "is_decoupled", "expected"),
    [
        ("none", True, "none"),
        ("l2", True, "l2"),
        ("decoupled", False, "decoupled"),
        ("either", False, "l2"),
        ("either", True, "decoupled"),
    ],
)
def test_the_rule_decides_on_the_kind_of_decay_or_leaves_it_to_the_option(
    decay, is_decoupled, expected
):
    options = {**OPTIONS, "decoupled_weight_decay": is_decoupled}
    assert replace(RULE, decay=decay).decay_kind(options) == expected


@pytest.mark.parametrize("decay", ["none", "l2", "decoupled", "either"])
@pytest.mark.parametrize("options", [{"weight_decay": 0.0}, {}])
def test_no_decay_is_none_of_any_kind(decay, options):
    assert replace(RULE, decay=decay).decay_kind(options) == "none"


def test_a_rule_of_one_kind_needs_no_option_for_it():
    assert replace(RULE, decay="l2").decay_kind({"weight_decay": 1.0}) == "l2"


@pytest.mark.parametrize(("maximize", "sign"), [(False, 1.0), (True, -1.0)])
@pytest.mark.parametrize(
    ("decay", "l2", "shrink"),
    [("none", 0.0, 1.0), ("l2", 0.25, 1.0), ("decoupled", 0.0, 1 - 0.5 * 0.25)],
)
def test_the_frame_turns_the_sign_and_decays(decay, l2, shrink, maximize, sign):
    options = {**OPTIONS, "maximize": maximize}
    assert replace(RULE, decay=decay).frame_scalars(options) == FrameScalars(sign, l2, shrink)


def test_a_kind_of_decay_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"decay of None must be one of .* not 'L2'"):
        replace(RULE, decay="L2")


def test_a_row_is_the_scalars_of_the_frame_and_of_the_rule_and_a_place_for_the_steps():
    row, left = RULE.row({**OPTIONS, "maximize": True}, 3, (), is_first=False)
    assert row == (-1.0, 0.25, 1.0, 3, 0.5, NO_STEPS)
    assert left == ()


def test_the_first_row_has_scalars_of_its_own():
    row, _ = RULE.row(OPTIONS, 3, (), is_first=True)
    assert row == (1.0, 0.25, 1.0, -3, 0.5, NO_STEPS)


def test_carries_are_handed_over_by_name_and_kept_in_order():
    row, left = CARRYING.row({**OPTIONS, "maximize": True}, 3, (5.0, 7.0), is_first=False)
    assert row == (-1.0, 0.25, 1.0, 5.0, 7.0, NO_STEPS)
    assert left == (6.0, 17.0)


def test_the_slots_of_all_variants_are_known():
    assert RULE.variants() == [Variant(more=False), Variant(more=True)]
    assert (RULE.width, RULE.always_used) == (2, {"b"})


@pytest.mark.parametrize("used", [["a"], "a", None, ("d",)])
def test_slots_that_are_not_declared_by_name_are_refused(used):
    rule = replace(RULE, used_slots=lambda variant: used)
    with pytest.raises(TypeError, match="used_slots of None must return a tuple of names out of"):
        _ = rule.width


SINGLE, DOUBLE = np.dtype("f4"), np.dtype("f8")


@pytest.mark.parametrize("grad", [SINGLE, DOUBLE])
@pytest.mark.parametrize("slot", [SINGLE, DOUBLE])
@pytest.mark.parametrize("param", [SINGLE, DOUBLE])
def test_the_parameter_decides_on_what_computes(param, grad, slot):
    storage = Storage(param, grad, (param, slot))
    assert storage.compute == param
    assert storage.is_uniform == (param == grad == slot)


@pytest.mark.parametrize("decay", ["decoupled", "either"])
def test_a_rule_with_sums_may_not_decay_ahead_of_them(decay):
    with pytest.raises(ValueError, match=f"decay of None must be one of .*, not '{decay}'"):
        replace(RULE, sums=("param_sq",), measure=print, finish=sum, decay=decay)


@pytest.mark.parametrize("lacking", ["measure", "finish"])
def test_a_rule_with_sums_needs_what_takes_them(lacking):
    given = {"measure": print, "finish": sum, "decay": "none", lacking: None}
    with pytest.raises(TypeError, match="None has sums, so it needs measure and finish"):
        replace(RULE, sums=("param_sq",), **given)
