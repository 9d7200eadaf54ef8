"""Rule: an update rule as a value, and how its arrays are stored; nothing of who uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

Variant: TypeAlias = Any
"""A NamedTuple with the choice of each switch of a rule."""

NO_STEPS = 0.0
"""Stands in a row for the bits of a step count, which only stochastic rounding reads."""

DECAYS = ("none", "l2", "decoupled", "either")
"""What the frame makes of ``weight_decay``: nothing, one of two kinds, or the one that the option
``decoupled_weight_decay`` asks for."""

PHASED_DECAYS = ("none", "l2")
"""Those of a rule of two phases."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)

BESIDE: Mapping[str, Mapping[str, np.dtype[Any]]] = {
    "none": {},
    "float32": {"master": np.dtype(np.float32)},
    "split": {"master_low": np.dtype(np.int16)},
}
"""The slot of each kind of master, and its dtype."""


class FrameScalars(NamedTuple):
    """What the frame does to gradient and parameter ahead of every rule.

    Attributes:
        sign: −1 to follow the gradient upwards, else 1: ``g ← sign·g``.
        l2: λ of L2 decay, else 0: ``g ← g + l2·θ``.
        shrink: 1 − ηλ of decoupled decay, else 1: ``θ ← shrink·θ``.
    """

    sign: float = 1.0
    l2: float = 0.0
    shrink: float = 1.0


class Storage(NamedTuple):
    """What the arrays of a tensor are stored as; what computes follows from the parameter.

    Attributes:
        param: dtype of the parameter.
        grad: dtype of its gradient.
        slots: dtype of each slot of the rule, in the order of ``Rule.slots``.
        master: where the exact value of a parameter of 16 bits is: ``"float32"`` in the slot
            ``master``; ``"split"`` in the parameter and the slot ``master_low`` together;
            ``"none"`` nowhere, or in the parameter itself if it is not of 16 bits.
    """

    param: np.dtype[Any]
    grad: np.dtype[Any]
    slots: tuple[np.dtype[Any], ...]
    master: str = "none"

    @property
    def compute(self) -> np.dtype[Any]:
        """The dtype in which the rule computes: float64 for float64, else float32."""
        return np.dtype(np.float64 if self.param == np.float64 else np.float32)

    @property
    def is_uniform(self) -> bool:
        """Whether all arrays are stored as what computes."""
        return {self.param, self.grad, *self.slots} == {self.compute}

    @property
    def beside(self) -> Mapping[str, np.dtype[Any]]:
        """The slot that the frame keeps beside the parameter, if there is one, and its dtype."""
        return BESIDE[self.master]

    @property
    def rounds(self) -> bool:
        """Whether an array is rounded stochastically."""
        alone = {self.param} if self.master == "none" else set()
        return BFLOAT16 in {*alone, *self.slots}

    def used(self, rule: Rule, variant: Variant) -> dict[str, np.dtype[Any]]:
        """Return the slots of a variant in the order in which code takes them, and their dtypes."""
        dtype_of = dict(zip(rule.slots, self.slots, strict=True))
        return {**{name: dtype_of[name] for name in rule.used_slots(variant)}, **self.beside}


def no_fills(options: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG001 - a rule's may
    """Return that every slot begins with zeros."""
    return {}


@dataclass(frozen=True)
class Rule:
    """What an author declared of an update rule; equal rules are one rule.

    Attributes:
        kernel: the CUDA source: a name such as ``"adam"``, or the path of a ``.cuh`` file.
        functor: the name of the C++ functor in it.
        slots: the names of the arrays beside a parameter that any variant uses.
        switches: the choices of each template parameter of the functor after the type.
        Variant: a NamedTuple of one choice for each switch.
        Scalars: a NamedTuple of the constants of one step, in the order of the functor's members.
        scalars: ``scalars(options, t)``, or ``scalars(options, t, carry)`` with carries.
        first_scalars: the same for the step for which slots of a tensor were made.
        used_slots: the names of the slots of a variant, in the order of the functor's arguments.
        update: the NumPy twin of the functor.
        scratch: how many arrays of a block's size ``update`` needs.
        decay: which weight decay the frame applies ahead of the rule: one of ``DECAYS``.
        carries: names and start values of numbers that a step hands to the next one.
        fills: ``fills(options)``: what slots begin with where that is not 0: a number, or
            ``"param"`` for a copy of the parameter.
        sums: names of the sums of squares over a tensor that a rule of two phases takes; none for
            an elementwise rule.
        measure: the NumPy twin of its first phase.
        finish: returns from the sums of a tensor the number that its second phase takes.
        slots_move_first: whether the first phase changes the slots, or else the second.
    """

    kernel: str | Path
    functor: str
    slots: tuple[str, ...]
    switches: tuple[tuple[str, tuple[Any, ...]], ...]
    Variant: Any
    Scalars: Any
    scalars: Callable[..., Any]
    first_scalars: Callable[..., Any]
    used_slots: Callable[[Variant], tuple[str, ...]]
    update: Callable[..., None]
    scratch: int = 0
    decay: str = "either"
    carries: tuple[tuple[str, float], ...] = ()
    fills: Callable[[Mapping[str, Any]], Mapping[str, Any]] = no_fills
    sums: tuple[str, ...] = ()
    measure: Callable[..., None] | None = None
    finish: Callable[..., float] | None = None
    slots_move_first: bool = False

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay of {self.functor} must be one of {DECAYS}, not {self.decay!r}")
        if self.sums and self.decay not in PHASED_DECAYS:
            raise ValueError(
                f"decay of {self.functor} must be one of {PHASED_DECAYS}, not {self.decay!r}: the "
                "first of two phases leaves the parameter alone"
            )
        if self.sums and not (self.measure and self.finish):
            raise TypeError(f"{self.functor} has sums, so it needs measure and finish")

    def variants(self) -> list[Variant]:
        """Return every variant: the product of the switches."""
        return [self.Variant(*choices) for choices in product(*(own for _, own in self.switches))]

    @cached_property
    def width(self) -> int:
        """The most slots that a variant uses: the slot arguments of the functor."""
        return max(map(len, self._used))

    @cached_property
    def always_used(self) -> frozenset[str]:
        """The slots that every variant uses."""
        return frozenset.intersection(*map(frozenset, self._used))

    @cached_property
    def _used(self) -> list[tuple[str, ...]]:
        """The slots of each variant.

        Raises:
            TypeError: the rule does not declare them by name.
        """
        found = [self.used_slots(variant) for variant in self.variants()]
        for used in found:
            if not isinstance(used, tuple) or not set(used) <= set(self.slots):
                raise TypeError(
                    f"used_slots of {self.functor} must return a tuple of names out of "
                    f"{self.slots}, not {used!r}"
                )
        return found

    def decay_kind(self, options: Mapping[str, Any]) -> str:
        """Return which weight decay the frame applies: "none", "l2" or "decoupled"."""
        if not options.get("weight_decay") or self.decay == "none":
            return "none"
        if self.decay != "either":
            return self.decay
        return "decoupled" if options["decoupled_weight_decay"] else "l2"

    def frame_scalars(self, options: Mapping[str, Any]) -> FrameScalars:
        """Return what the frame does with gradient and parameter ahead of the rule."""
        sign = -1.0 if options["maximize"] else 1.0
        kind = self.decay_kind(options)
        if kind == "none":
            return FrameScalars(sign)
        if kind == "l2":
            return FrameScalars(sign, l2=options["weight_decay"])
        return FrameScalars(sign, shrink=1 - options["lr"] * options["weight_decay"])

    def row(
        self, options: Mapping[str, Any], t: int, carry: tuple[float, ...], is_first: bool
    ) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the row of a step, and the carry that it leaves.

        The row has the scalars of the frame and of the rule, and a place for the steps taken.

        Args:
            options: of the tensor's group.
            t: the number of this step of the tensor, from 1.
            carry: what the step before it left, in the order of ``carries``.
            is_first: whether slots of the tensor were made for this step.
        """
        compute = self.first_scalars if is_first else self.scalars
        frame = self.frame_scalars(options)
        if not self.carries:
            return (*frame, *compute(options, t), NO_STEPS), carry
        names = [name for name, _ in self.carries]
        scalars, left = compute(options, t, dict(zip(names, carry, strict=True)))
        return (*frame, *scalars, NO_STEPS), tuple(left[name] for name in names)
