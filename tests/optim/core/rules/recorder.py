"""Recorder: a rule whose slots tell which scalars each tensor was given."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lucid_gpu.optim import FusedOptimizer
from tests.stepping import host


class Recorder(FusedOptimizer):
    """Subtracts the gradient, and writes the scalars of the step into slots.

    It uses all that a rule can declare: ``total`` and ``product`` are carried from step to step,
    the first step has scalars of its own, and ``number`` and ``copy`` begin with something.
    """

    kernel = Path(__file__).with_name("recorder.cuh")
    functor = "Recorder"
    slots = ("own_t", "own_first", "own_total", "own_product", "number", "copy")
    carries = {"sum": 0.5, "power": 1.0}  # noqa: RUF012 - declared by the base class
    decay = "none"

    class Scalars(NamedTuple):
        """Constants of one step."""

        t: float
        first: float
        total: float
        product: float

    def __init__(self, params, amount=1.0, number=7.0, **frame):
        super().__init__(params, {"amount": amount, "number": number}, **frame)

    @staticmethod
    def used_slots(variant):
        return Recorder.slots

    @staticmethod
    def fills(options):
        return {"number": options["number"], "copy": "param"}

    @staticmethod
    def scalars(options, t, carry):
        total, power = carry["sum"] + options["amount"], carry["power"] * 2
        # In another order than they were declared in.
        return Recorder.Scalars(t, 0.0, total, power), {"power": power, "sum": total}

    @staticmethod
    def first_scalars(options, t, carry):
        scalars, left = Recorder.scalars(options, t, carry)
        return scalars._replace(first=1.0), left

    @staticmethod
    def update(k, variant, /, param, g, own_t, own_first, own_total, own_product, *_):
        param -= g
        for slot, value in zip((own_t, own_first, own_total, own_product), k, strict=True):
            slot[...] = value


def slot(optimizer, param, name):
    """Return a slot of a parameter, whose elements are all the same."""
    (value,) = set(host(optimizer.state[param][name]).ravel().tolist())
    return value


def recorded(optimizer, param):
    """Return the scalars that a parameter was given at its last step."""
    return [slot(optimizer, param, f"own_{name}") for name in Recorder.Scalars._fields]
