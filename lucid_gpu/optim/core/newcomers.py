"""Newcomers: tensors on their first step, whose slots come into the state with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from lucid_gpu.optim.core.inputs import Inputs
from lucid_gpu.optim.core.parts import Part

if TYPE_CHECKING:
    from lucid_gpu.optim.core.state import State


class _Tentative(NamedTuple):
    """A tensor whose slots are in the state for a step that may turn out to have been skipped.

    Attributes:
        part: the part that has it.
        number: its number there.
        steps: how many it had made before.
        take_back: takes the slots out of the state.
    """

    part: Part
    number: int
    steps: int
    take_back: Callable[[], None]


class Newcomers:
    """Tensors whose slots are made, and in the state once a step of theirs is taken.

    A GPU may turn out to have skipped that step: then the slots are taken out again, and wait for
    the next one, as they do on a CPU, where that is known before they are put in.

    Args:
        inputs: the parameters.
        state: of the optimizer.
    """

    def __init__(self, inputs: Inputs, state: State) -> None:
        self._inputs, self._state = inputs, state
        self._waiting: list[tuple[Part, int]] = []
        self._tentative: list[_Tentative] = []

    @property
    def are_waiting(self) -> bool:
        """Whether there are slots that the next step puts into the state."""
        return bool(self._waiting)

    def add(self, part: Part, number: int) -> None:
        """Have the slots of a tensor of a part wait for its next step."""
        self._waiting.append((part, number))

    def enter(self, is_tentative: bool) -> None:
        """Put the slots that wait into the state.

        Args:
            is_tentative: whether the step for which it is done may turn out to have been skipped.
        """
        for part, number in self._waiting:
            tensor = part.tensors[number]
            own = self._inputs.kept(tensor.position, tensor.slots or {})
            take_back = self._state.add(tensor.param, {**part.counts.shared(number), **own})
            if is_tentative:
                steps = part.counts.steps(number)
                self._tentative.append(_Tentative(part, number, steps, take_back))
        self._waiting.clear()
        self._state.expect_removal(bool(self._tentative))

    def review(self, unknown: int) -> None:
        """Take slots back out of the state whose tensors turned out to have made no step.

        Args:
            unknown: how many of the last steps may turn out to have been skipped.
        """
        if not self._tentative:
            return
        kept = []
        for each in self._tentative:
            steps = each.part.counts.steps(each.number)
            if steps == each.steps:
                each.take_back()
                self._waiting.append((each.part, each.number))
            elif steps - unknown <= each.steps:
                kept.append(each)
        self._tentative = kept
        self._state.expect_removal(bool(kept))
