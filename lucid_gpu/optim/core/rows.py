"""Rows: step counts of tensors, and the scalars that tensors share which step alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.execution.plan import row_fields
from lucid_gpu.execution.rule import Rule, Storage
from lucid_gpu.optim.core.state import Shared

KNOWN = 8
"""For how many sets of tensors that have a gradient it is kept which of them step alike."""


class Rows(NamedTuple):
    """The scalars of one step.

    Attributes:
        scalars: for each row, the frame's and then the rule's, rounded to what computes; last the
            bits of the number of steps taken.
        row_of: for each tensor, its row; of a tensor without a gradient it means nothing.
        carries: for each row, what the step leaves for the next one.
        stride: how many rows there are for each number of skipped steps that there may be.
    """

    scalars: npt.NDArray[Any]
    row_of: npt.NDArray[np.int32]
    carries: list[tuple[float, ...]]
    stride: int


class _Alike(NamedTuple):
    """Which tensors step alike.

    Attributes:
        row_of: as in :class:`Rows`.
        leaders: the first tensor of each row.
        leader_of: for each tensor, that of its row.
        groups: the number of its parameter group.
        firsts: whether slots of it were made for this step.
    """

    row_of: npt.NDArray[np.int32]
    leaders: npt.NDArray[np.intp]
    leader_of: npt.NDArray[np.intp]
    groups: list[int]
    firsts: list[bool]


class Counts:
    """How many steps each tensor of a tensor group has made, and what its last one left.

    Args:
        rule: the rule.
        groups: the parameter groups, for their options.
        group_of: the number of the group of each tensor.
        storage: what their arrays are stored as.
    """

    def __init__(
        self,
        rule: Rule,
        groups: Sequence[Mapping[str, Any]],
        group_of: npt.NDArray[np.intp],
        storage: Storage,
    ) -> None:
        self._rule, self._groups, self._group_of = rule, groups, group_of
        self._storage, self._dtype = storage, storage.compute
        count = len(group_of)
        self._steps = np.zeros(count, np.int64)
        self._carries = np.tile([start for _, start in rule.carries], (count, 1))
        self._largest = float(np.finfo(self._dtype).max)
        self._is_first = np.zeros(count, np.bool_)
        self._has_firsts = False
        self._minds_first = rule.first_scalars is not rule.scalars
        self._present = np.zeros(count, np.bool_)
        self._increments = np.zeros(count, np.int64)
        self._undo = np.zeros(count, np.bool_)
        self._undoes = False
        self._before: npt.NDArray[Any] | None = None
        self._alike = self._find_alike()
        self._known: dict[bytes, _Alike] = {}
        self._is_grouped = False

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """Which tensors have a gradient now."""
        return self._present

    def admit(self, tensor: int, slots: Mapping[str, Any], is_first: bool) -> None:
        """Take over the count and the carries of a tensor.

        Args:
            tensor: its number.
            slots: what its state holds.
            is_first: whether slots of it were made for its next step.
        """
        self._steps[tensor] = slots.get("step", 0)
        self._carries[tensor] = [slots.get(name, start) for name, start in self._rule.carries]
        self._is_first[tensor] = is_first
        self._has_firsts |= is_first
        self._is_grouped = False
        self._known.clear()

    def shared(self, tensor: int) -> dict[str, Shared]:
        """Return what stands in the state of a tensor for its count and carries."""
        names = [name for name, _ in self._rule.carries]
        columns = {name: Shared(self._carries[:, i], tensor) for i, name in enumerate(names)}
        return {"step": Shared(self._steps, tensor), **columns}

    def steps(self, tensor: int) -> int:
        """Return how many steps a tensor has made, if none was skipped that is not known."""
        return int(self._steps[tensor])

    def set_present(self, present: npt.NDArray[np.bool_]) -> None:
        """Note which tensors have a gradient."""
        if present.tobytes() != self._present.tobytes():
            self._present, self._increments = present, present.astype(np.int64)
            self._is_grouped = False

    @property
    def kinds(self) -> int:
        """In how many ways tensors step now."""
        if not self._is_grouped:
            self._group()
        return len(self._alike.leaders)

    @property
    def needs_exact_counts(self) -> bool:
        """Whether the next rows are known only once it is known which steps were skipped."""
        is_first = self._is_first[self._present].any() or self._undo.any()
        return bool(self._rule.carries) or bool(self._minds_first and is_first)

    def rows(self, unknown: int = 0) -> Rows:
        """Return the scalars of the next step, which changes nothing yet.

        Args:
            unknown: how many of the last steps may turn out to have been skipped: the rows for each
                number of them follow one another.

        Raises:
            ValueError: one is too large for the dtype that computes.
        """
        if not self._is_grouped:
            self._group()
        of, row_of = self._alike.leaders, self._alike.row_of
        if len(of) == 1 and not unknown and not self._storage.rounds:
            rows = self._single_row(int(of[0]))
            if rows is not None:
                return rows
        steps = self._steps[of]
        candidates = [np.maximum(steps - skipped, 0) for skipped in range(unknown + 1)]
        nothing: list[tuple[float, ...]] = [()] * len(of)
        made = [
            self._rule.row(self._groups[group], step + 1, tuple(carry), is_first)
            for counted in candidates
            for group, step, carry, is_first in zip(
                self._alike.groups,
                counted.tolist(),
                self._carries[of].tolist() if self._rule.carries else nothing,
                self._alike.firsts,
                strict=True,
            )
        ]
        exact = np.array([row for row, _ in made], np.float64)
        with np.errstate(over="ignore"):
            rounded = exact.astype(self._dtype)
        if not np.isfinite(rounded).all():
            self._refuse(exact, rounded)
        if self._storage.rounds:
            taken = np.concatenate(candidates)
            rounded[:, -1] = taken.astype(np.uint32).view(np.float32)
        return Rows(rounded, row_of, [left for _, left in made], len(of))

    def _single_row(self, leader: int) -> Rows | None:
        """Return the one row of tensors that step alike, as most do; None if it may not fit.

        Python does so in half the time of what serves any number of rows.
        """
        group, is_first = self._groups[self._alike.groups[0]], self._alike.firsts[0]
        carry = tuple(self._carries[leader].tolist()) if self._rule.carries else ()
        row, left = self._rule.row(group, self._steps.item(leader) + 1, carry, is_first)
        if not sum(map(abs, row)) <= self._largest:
            return None
        return Rows(np.array([row], self._dtype), self._alike.row_of, [left], 1)

    def _refuse(self, exact: npt.NDArray[np.float64], rounded: npt.NDArray[Any]) -> None:
        row, column = np.argwhere(~np.isfinite(rounded))[0].tolist()
        group = self._alike.groups[row % len(self._alike.groups)]
        raise ValueError(
            f"the options of parameter group {group} make {row_fields(self._rule)[column]} "
            f"{exact[row, column]}, which {self._dtype} cannot hold: choose smaller ones, or "
            "float64 parameters"
        )

    def count(self, rows: Rows) -> None:
        """Count the step that these rows were made for."""
        self._steps += self._increments
        self._before = self._carries.copy() if self._rule.carries else None
        if self._has_firsts or self._undoes:
            self._undo = self._is_first & self._present
            self._undoes = self._has_firsts
        if self._rule.carries and rows.carries:
            left = np.array(rows.carries)
            self._carries[self._present] = left[rows.row_of[self._present]]
        if self._has_firsts:
            self._is_first &= ~self._present
            self._has_firsts = bool(self._is_first.any())
            self._is_grouped = self._is_grouped and not self._minds_first

    def take_back(self, skipped: int) -> None:
        """Uncount steps that were skipped, of the tensors that have a gradient.

        Args:
            skipped: how many; more than the last one only where rows do not ask for exact counts.
        """
        self._steps -= skipped * self._increments
        if self._before is not None:
            self._carries[...] = self._before
        if self._undo.any():
            self._is_first |= self._undo
            self._has_firsts = True
            self._undo = np.zeros_like(self._undo)
        self._is_grouped = self._is_grouped and not (self._minds_first or self._rule.carries)

    def _group(self) -> None:
        """Find the tensors that step alike: one group, count and carry, and slots as new."""
        key = self._present.tobytes()
        known = None if self._has_firsts else self._known.get(key)
        if known is None or not self._are_alike_still(known):
            known = self._find_alike()
            if len(self._known) == KNOWN:
                self._known.clear()
            if not self._has_firsts:
                self._known[key] = known
        self._alike = known
        self._is_grouped = True

    def _are_alike_still(self, known: _Alike) -> bool:
        """Say whether tensors that stepped alike, and have a gradient, would do so again."""
        differ = self._steps != self._steps[known.leader_of]
        if self._rule.carries:
            differ |= (self._carries != self._carries[known.leader_of]).any(axis=1)
        return not (differ & self._present).any()

    def _find_alike(self) -> _Alike:
        tensors = np.flatnonzero(self._present)
        firsts = self._is_first & self._minds_first
        keys = [self._group_of, self._steps, firsts, *self._carries.T]
        # What is the same of all tensors, as most of it is, need not be sorted by.
        columns = [own for key in keys if ((own := key[tensors]) != own[:1]).any()]
        order = np.lexsort(columns[::-1]) if columns else np.arange(len(tensors))
        differs = np.zeros(len(tensors), np.bool_)
        differs[:1] = True
        for column in columns:
            sorted_column = column[order]
            differs[1:] |= sorted_column[1:] != sorted_column[:-1]
        row_of = np.zeros(len(self._present), np.int32)
        row_of[tensors[order]] = np.cumsum(differs) - 1
        leaders = tensors[order][differs]
        leader_of = leaders[row_of] if len(leaders) else np.zeros(len(row_of), np.intp)
        groups, are_first = self._group_of[leaders].tolist(), firsts[leaders].tolist()
        return _Alike(row_of, leaders, leader_of, groups, are_first)
