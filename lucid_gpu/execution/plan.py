"""A step as tables: which arrays, cut into which chunks, with which scalars. NumPy only.

The record types mirror the structs of ``kernels/fused_step.cuh``, member by member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import C_ORDER, F_ORDER, contiguity

DENSE = C_ORDER | F_ORDER

CHUNK_ELEMENTS = 4096
"""Elements that one block updates. Measured: larger is as fast on one tensor, slower on models."""

CARRIED_BYTES = 2048
"""How many bytes of scalars a launch carries itself: 64 rows of Adam in float32."""

CHUNK = np.dtype([("start", "i8"), ("tensor", "i4"), ("count", "i4")])

ARGUMENT = np.dtype(
    [
        ("chunks", "u8"),
        ("tensors", "u8"),
        ("grads", "u8"),
        ("table", "u8"),
        ("carried", "u1", (CARRIED_BYTES,)),
    ]
)
"""What the kernel is called with, by value: ``Argument`` of the kernel."""


class Rule(Protocol):
    """What execution needs to know of an update rule; optimizer classes provide it."""

    kernel: ClassVar[str | Path]
    functor: ClassVar[str]
    slots: ClassVar[tuple[str, ...]]
    switches: ClassVar[dict[str, tuple[Any, ...]]]
    scratch: ClassVar[int]
    Scalars: ClassVar[Any]

    @staticmethod
    def used_slots(variant: Any) -> int:
        """Return how many of the slots, from the first on, a variant uses."""
        ...

    @staticmethod
    def update(scalars: Any, variant: Any, /, *arrays: Any) -> None:
        """Update a block in place: parameter, gradient (not to be changed), slots, scratch."""
        ...


@dataclass
class Work:
    """Tensors of one device and dtype that step together.

    Attributes:
        rule: the optimizer class.
        dtype: of parameters, gradients and slots.
        params: the arrays to update.
        grads: their gradients.
        slots: the slots of each that its variant uses.
        row: for each tensor, which row of scalars it takes.
        variants: the variant of each row.
    """

    rule: type[Rule]
    dtype: np.dtype[Any]
    params: list[Any]
    grads: list[Any]
    slots: list[tuple[Any, ...]]
    row: list[int]
    variants: list[Any]

    def select(self, indices: npt.NDArray[np.intp]) -> Work:
        """Return the work on some of the tensors; the rows stay."""
        return Work(
            self.rule,
            self.dtype,
            [self.params[i] for i in indices],
            [self.grads[i] for i in indices],
            [self.slots[i] for i in indices],
            [self.row[i] for i in indices],
            self.variants,
        )


class Plan(NamedTuple):
    """The tables that stay while the tensors do, and the layout of those that change.

    Attributes:
        tensors: one record per piece: addresses of parameter and slots, row of scalars, variant.
        chunks: one record per chunk.
        scalars: one record per row, refilled each step.
        kinds: the distinct variants, in the order in which ``tensors`` counts them.
    """

    tensors: np.ndarray[Any, Any]
    chunks: np.ndarray[Any, Any]
    scalars: np.ndarray[Any, Any]
    kinds: list[Any]


def tensor_record(rule: type[Rule]) -> np.dtype[Any]:
    """Return the record type of ``Tensor`` for a rule."""
    return np.dtype([("array", "u8", (1 + len(rule.slots),)), ("rule", "i4"), ("variant", "i4")])


def scalar_record(rule: type[Rule], dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the record type of a rule's functor: its scalars, in order."""
    return np.dtype([(name, dtype) for name in rule.Scalars._fields])


class Piece(NamedTuple):
    """Neighbouring elements of a tensor: ``size`` of them, from ``start`` on."""

    tensor: int
    start: int
    size: int


def whole(work: Work) -> list[Piece]:
    """Return every tensor as one piece."""
    return [Piece(tensor, 0, param.size) for tensor, param in enumerate(work.params)]


def windows(pieces: Sequence[Piece], capacity: int) -> list[list[Piece]]:
    """Cut pieces into windows of at most ``capacity`` elements each, in order.

    A piece is cut at whole chunks, so that its parts are aligned as it was.

    Args:
        pieces: what to cut.
        capacity: at least :data:`CHUNK_ELEMENTS`.

    Example:
        >>> windows([Piece(0, 0, 5), Piece(1, 0, 9000)], 8192)
        ... # doctest: +NORMALIZE_WHITESPACE
        [[Piece(tensor=0, start=0, size=5), Piece(tensor=1, start=0, size=4096)],
         [Piece(tensor=1, start=4096, size=4904)]]
    """
    result: list[list[Piece]] = []
    room = 0
    for tensor, first, size in pieces:
        start, stop = first, first + size
        while start < stop:
            part = min(stop - start, room)
            if start + part < stop:
                part -= part % CHUNK_ELEMENTS
            if part:
                result[-1].append(Piece(tensor, start, part))
                start += part
                room -= part
            else:
                result.append([])
                room = capacity
    return result


def build(
    work: Work,
    pieces: Sequence[Piece],
    addresses: Sequence[Sequence[int]],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Plan:
    """Return the plan of some work.

    Args:
        work: the tensors.
        pieces: the parts of them to step, each a tensor in the eyes of the kernel.
        addresses: for each piece, of its parameter and then of its slots in use.
        chunk_elements: how many elements a chunk has, at most.
    """
    kinds = sorted({work.variants[row] for row in work.row}, key=repr)
    tensors = np.zeros(len(pieces), tensor_record(work.rule))
    for position, own in enumerate(addresses):
        tensors["array"][position, : len(own)] = own
    rows = [work.row[piece.tensor] for piece in pieces]
    tensors["rule"] = rows
    tensors["variant"] = [kinds.index(work.variants[row]) for row in rows]
    sizes = np.array([piece.size for piece in pieces], np.int64)
    scalars = np.zeros(len(work.variants), scalar_record(work.rule, work.dtype))
    return Plan(tensors, cut(sizes, chunk_elements), scalars, kinds)


def cut(sizes: npt.NDArray[np.int64], chunk_elements: int) -> np.ndarray[Any, Any]:
    """Return the chunks of tensors of the given sizes; a tensor without elements has none.

    Example:
        >>> cut(np.array([5, 0, 2]), 4).tolist()
        [(0, 0, 4), (4, 0, 1), (0, 2, 2)]
    """
    per_tensor = -(-sizes // chunk_elements)
    chunks = np.zeros(int(per_tensor.sum()), CHUNK)
    tensor = np.repeat(np.arange(len(sizes)), per_tensor)
    first = np.cumsum(per_tensor) - per_tensor
    start = (np.arange(len(chunks)) - first[tensor]) * chunk_elements
    chunks["tensor"] = tensor
    chunks["start"] = start
    chunks["count"] = np.minimum(sizes[tensor] - start, chunk_elements)
    return chunks


def c_type(dtype: npt.DTypeLike) -> str:
    """Return the C++ type that computes for a dtype."""
    return "double" if np.dtype(dtype) == np.float64 else "float"


def functor(rule: type[Rule], variant: Any, dtype: npt.DTypeLike) -> str:
    """Return the C++ type of a rule's variant, ``Adam<float, 0, 1, 0>`` for example.

    A switch counts as the position of its value among its choices.
    """
    switches = [
        str(_position(choices, getattr(variant, name))) for name, choices in rule.switches.items()
    ]
    return f"{rule.functor}<{', '.join([c_type(dtype), *switches])}>"


def kernel_name(rule: type[Rule], kinds: Sequence[Any], dtype: npt.DTypeLike) -> str:
    """Return the name expression of the kernel for some variants of a rule."""
    types = ", ".join([c_type(dtype)] * 4)
    functors = ", ".join(functor(rule, kind, dtype) for kind in kinds)
    return f"fused_step<{types}, {functors}>"


def common_layout(arrays: Sequence[Any]) -> int:
    """Return the orders in which all arrays are contiguous: C_ORDER, F_ORDER, their sum or 0.

    Arrays that share one can be flattened together without a copy.
    """
    return reduce(and_, map(contiguity, arrays)) & DENSE


def _position(choices: tuple[Any, ...], value: Any) -> int:
    return next(
        i for i, choice in enumerate(choices) if type(choice) is type(value) and choice == value
    )
