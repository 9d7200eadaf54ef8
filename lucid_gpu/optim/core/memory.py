"""Memory: what a quasi-Newton method of limited memory remembers of its moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from lucid_gpu.optim.core.checks import python_number
from lucid_gpu.optim.core.flat_vector import FlatVector
from lucid_gpu.optim.core.groups import is_positional
from lucid_gpu.optim.core.tensors import misfits, require, step_problems

COUNTS = ("step", "func_evals", "n_iter")
NUMBERS = ("t", "H_diag", "prev_loss", "best_loss")
VECTORS = ("d", "prev_flat_grad", "best_point")
PAIRS = ("old_dirs", "old_stps")
UNUSED = ("al",)
"""What PyTorch keeps for its own sake."""


@dataclass
class Memory:
    """What is known of earlier moves; the state of the optimizer, by the names of PyTorch.

    Attributes:
        step: how many calls there were.
        func_evals: how many evaluations.
        n_iter: how many iterations.
        t: how far the last move went along ``d``.
        H_diag: the scale of the first estimate of the inverse Hessian.
        prev_loss: ahead of the last move.
        best_loss: the lowest of the last call.
        d: the direction of the last move; None ahead of the first.
        prev_flat_grad: the gradient ahead of it.
        best_point: where the loss was lowest.
        old_dirs: the changes y of gradients.
        old_stps: the moves s.
        ro: 1 / y·s of each.
    """

    step: int = 0
    func_evals: int = 0
    n_iter: int = 0
    t: float = 0.0
    H_diag: float = 1.0
    prev_loss: float = math.inf
    best_loss: float = math.inf
    d: Any = None
    prev_flat_grad: Any = None
    best_point: Any = None
    old_dirs: list[Any] = field(default_factory=list)
    old_stps: list[Any] = field(default_factory=list)
    ro: list[float] = field(default_factory=list)

    @staticmethod
    def read(slots: Mapping[str, Any], vector: FlatVector) -> Memory:
        """Return what the state of the first parameter holds, in lists of its own.

        Raises:
            ValueError: it does not fit.
        """
        if not slots:
            return Memory()
        if _sizes(slots.get("members")) not in (None, _sizes(vector.members)):
            slots = {name: slots[name] for name in COUNTS if name in slots}
        require(memory_problems(slots, vector.members, vector.dtype))
        own = {each.name: slots[each.name] for each in fields(Memory) if each.name in slots}
        own |= {name: float(own[name]) for name in NUMBERS if name in own}
        for name in PAIRS:
            own[name] = list(own.get(name) or ())
        own["ro"] = [float(value) for value in own.get("ro") or ()]
        return Memory(**own)

    def slots(self, vector: FlatVector) -> dict[str, Any]:
        """Return the state of the first parameter; vectors that there are not yet are left out."""
        kept = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            **{name: value for name, value in kept.items() if value is not None},
            "members": vector.members,
        }

    def forget(self) -> None:
        """Begin a new history."""
        self.d, self.prev_flat_grad, self.H_diag = None, None, 1.0
        self.old_dirs, self.old_stps, self.ro = [], [], []


def memory_problems(
    slots: Mapping[str, Any], members: list[list[Any]], dtype: np.dtype[Any]
) -> list[str]:
    """Return, in words, why slots are not the state of parameters.

    Args:
        slots: of the first parameter.
        members: name and size of each parameter.
        dtype: of all.
    """
    known = {*(each.name for each in fields(Memory)), "members", *UNUSED}
    problems = [f"slot {name!r} is unknown" for name in slots if name not in known]
    problems += [f"slot {name!r} is missing" for name in COUNTS[1:] if name not in slots]
    for name in COUNTS:
        problems += [
            text.replace("'step'", repr(name)) for text in step_problems(slots.get(name, 0))
        ]
    if slots.get("d") is not None:
        moved = ("t", "H_diag", "prev_flat_grad", "ro", *PAIRS)
        problems += [f"slot {name!r} is missing" for name in moved if slots.get(name) is None]
    problems += [
        f"slot {name!r} must be a number, not {slots[name]!r}"
        for name in NUMBERS
        if slots.get(name) is not None and type(python_number(slots[name])) not in (int, float)
    ]
    return (
        problems
        + _order_problems(slots.get("members"), members)
        + _vector_problems(slots, sum(size for _, size in members), dtype)
    )


def _vector_problems(slots: Mapping[str, Any], size: int, dtype: np.dtype[Any]) -> list[str]:
    """Return, in words, why vectors do not fit parameters of so many elements."""
    like = np.broadcast_to(np.zeros((), dtype), (size,))
    vectors = {name: slots[name] for name in VECTORS if slots.get(name) is not None}
    lists = {name: slots.get(name) or [] for name in ("ro", *PAIRS)}
    odd = [name for name, own in lists.items() if not isinstance(own, list | tuple)]
    if odd or len(set(map(len, lists.values()))) > 1:
        return ["slots 'old_dirs', 'old_stps' and 'ro' must be lists of one length"]
    vectors |= {f"{name}[{i}]": array for name in PAIRS for i, array in enumerate(lists[name])}
    return [
        text
        for name, array in vectors.items()
        for text in misfits(f"slot {name!r}", array, like, "shape", "dtype")
    ]


def _order_problems(saved: Any, members: list[list[Any]]) -> list[str]:
    """Return, in words, why vectors of some parameters are not those of others."""
    if saved is None:
        return []
    sizes = _sizes(saved)
    if sizes is None:
        return [f"slot 'members' must be a list of names with sizes, not {saved!r:.200}"]
    if sizes != _sizes(members):
        return [f"its vectors are of parameters of {sizes} elements, in this order"]
    names, own = [name for name, _ in saved], [name for name, _ in members]
    if names != own and not (is_positional(names) or is_positional(own)):
        return [f"its vectors are of {names}, in this order, not of {own}"]
    return []


def _sizes(members: Any) -> list[Any] | None:
    """Return the sizes of members, None if they are none."""
    is_list = isinstance(members, list | tuple)
    if not is_list or not all(isinstance(own, list | tuple) and len(own) == 2 for own in members):
        return None
    return [size for _, size in members]
