"""A step as tables: which arrays, cut into which chunks, with which scalars. NumPy only.

The record types mirror the structs of ``kernels/fused_step.cuh``, member by member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import C_ORDER, F_ORDER, STRIDED, contiguity
from lucid_gpu.execution.rule import BFLOAT16, FrameScalars, Rule, Storage, Variant

DENSE = C_ORDER | F_ORDER

WATCHED = ("param", "update")
"""Whose squares a step that tells adds up: parameters as it leaves them, and how far they moved."""

C_TYPES = {"float32": "float", "float64": "double", "bfloat16": "BFloat16", "float16": "Float16"}

ALL_LAYOUTS = STRIDED | DENSE
"""The layout of an array that is nowhere in the way."""

CHUNK_ELEMENTS = 4096
"""Elements that one block updates. Measured: larger is as fast on one tensor, slower on models."""

THREADS = 256
"""Threads per block: ``kThreads`` of ``fused_step.cuh``."""

CARRIED_BYTES = 2816
"""How many bytes of scalars a launch carries itself: 64 rows of Adam in float32."""

CHUNK = np.dtype([("start", "i8"), ("tensor", "i4"), ("count", "i4")])

FOLDING = np.dtype(
    [(name, "u8") for name in ("sums", "counts", "nodes", "arrived")]
    + [("stride", "i8"), ("first", "i8")]
)
"""What sums of chunks are folded with: ``Folding`` of ``kernels/rule.cuh``."""

ARGUMENT = np.dtype(
    [
        ("chunks", "u8"),
        ("tensors", "u8"),
        ("grads", "u8"),
        ("rows", "u8"),
        ("table", "u8"),
        ("seed", "u8"),
        ("outcome", "u8"),
        ("folding", FOLDING),
        ("watched", FOLDING),
        ("carried", "u1", (CARRIED_BYTES,)),
    ]
)
"""What the kernel is called with, by value: ``Argument`` of the kernel."""


@dataclass
class TensorGroup:
    """Tensors of one device and storage, which step together.

    Attributes:
        rule: what updates them.
        storage: the dtypes of their arrays.
        params: the arrays to update.
        slots: the slots of each that its variant uses, in that order, and what the frame keeps
            beside the parameter; None where a tensor never had a gradient, so that none were made.
        variants: the variant of each.
        streams: the number of the random bits of each, a multiple of 256; zeros by default.
        seed: of all random bits.
        telemetry: whether a step adds up squares of parameters and of their changes.
    """

    rule: Rule
    storage: Storage
    params: list[Any]
    slots: list[tuple[Any, ...] | None]
    variants: list[Any]
    streams: Sequence[int] = ()
    seed: int = 0
    telemetry: bool = False

    def __post_init__(self) -> None:
        self.streams = list(self.streams) or [0] * len(self.params)

    def select(self, indices: npt.NDArray[np.intp]) -> TensorGroup:
        """Return some of the tensors."""
        return TensorGroup(
            self.rule,
            self.storage,
            [self.params[i] for i in indices],
            [self.slots[i] for i in indices],
            [self.variants[i] for i in indices],
            [self.streams[i] for i in indices],
            self.seed,
            self.telemetry,
        )

    def arrays(self, tensor: int) -> tuple[Any, ...]:
        """Return the parameter of a tensor and the slots that it has."""
        return (self.params[tensor], *(self.slots[tensor] or ()))

    @property
    def orders(self) -> int:
        """The orders of contiguous arrays in which tensors can be flattened.

        Random bits belong to elements as they are numbered in C order, and so do sums.
        """
        return C_ORDER if self.storage.rounds or self.takes_sums else DENSE

    @property
    def takes_sums(self) -> bool:
        """Whether a step adds up squares, which are counted in chunks."""
        return bool(self.rule.sums) or self.telemetry


class Plan(NamedTuple):
    """The tables that stay while the tensors do, and the layout of those that change.

    Attributes:
        tensors: one record per span: addresses of parameter and slots, variant.
        chunks: one record per chunk.
        kinds: the distinct variants, in the order in which ``tensors`` counts them.
    """

    tensors: np.ndarray[Any, Any]
    chunks: np.ndarray[Any, Any]
    kinds: list[Any]


def tensor_record(rule: Rule, storage: Storage) -> np.dtype[Any]:
    """Return the record type of ``Tensor`` for a rule and what its arrays are stored as."""
    arrays = 1 + rule.width + len(storage.beside)
    return np.dtype(
        [("array", "u8", (arrays,)), ("first", "i8"), ("variant", "i4"), ("stream", "u4")]
    )


def row_fields(rule: Rule) -> tuple[str, ...]:
    """Return the names of what is in a row: the frame's scalars, the rule's, and steps taken."""
    frame = [f"frame.{name}" for name in FrameScalars._fields]
    return (*frame, *(f"rule.{name}" for name in rule.Scalars._fields), "steps")


def row_record(rule: Rule, dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the record type of a row of scalars: ``Row`` of the kernel."""
    return np.dtype([(name, dtype) for name in row_fields(rule)])


class Span(NamedTuple):
    """Neighbouring elements of a tensor: ``size`` of them, from ``start`` on."""

    tensor: int
    start: int
    size: int


def whole(tensors: TensorGroup) -> list[Span]:
    """Return every tensor as one span."""
    return [Span(tensor, 0, param.size) for tensor, param in enumerate(tensors.params)]


def windows(spans: Sequence[Span], capacity: int) -> list[list[Span]]:
    """Cut spans into windows of at most ``capacity`` elements each, in order.

    A span is cut at whole chunks, so that its parts are aligned as it was.

    Args:
        spans: what to cut.
        capacity: at least :data:`CHUNK_ELEMENTS`.

    Example:
        >>> windows([Span(0, 0, 5), Span(1, 0, 9000)], 8192)
        ... # doctest: +NORMALIZE_WHITESPACE
        [[Span(tensor=0, start=0, size=5), Span(tensor=1, start=0, size=4096)],
         [Span(tensor=1, start=4096, size=4904)]]
    """
    result: list[list[Span]] = []
    room = 0
    for tensor, first, size in spans:
        start, stop = first, first + size
        while start < stop:
            part = min(stop - start, room)
            if start + part < stop:
                part -= part % CHUNK_ELEMENTS
            if part:
                result[-1].append(Span(tensor, start, part))
                start += part
                room -= part
            else:
                result.append([])
                room = capacity
    return result


def build(
    tensors: TensorGroup,
    spans: Sequence[Span],
    addresses: Sequence[Sequence[int]],
    chunk_elements: int = CHUNK_ELEMENTS,
) -> Plan:
    """Return the plan of some tensors.

    Args:
        tensors: what to step.
        spans: the parts of them, each a tensor in the eyes of the kernel.
        addresses: for each span, of its parameter and then of its slots in use.
        chunk_elements: how many elements a chunk has, at most.
    """
    kinds = distinct_variants(tensors)
    number = {variant: position for position, variant in enumerate(kinds)}
    records = np.zeros(len(spans), tensor_record(tensors.rule, tensors.storage))
    for position, own in enumerate(addresses):
        records["array"][position, : len(own)] = own
    records["first"] = [span.start for span in spans]
    records["variant"] = [number[tensors.variants[span.tensor]] for span in spans]
    records["stream"] = [tensors.streams[span.tensor] for span in spans]
    sizes = np.array([span.size for span in spans], np.int64)
    return Plan(records, cut(sizes, chunk_elements), kinds)


def distinct_variants(tensors: TensorGroup) -> list[Variant]:
    """Return the variants of some tensors, in the order in which tables count them."""
    return sorted(set(tensors.variants), key=repr)


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


def misaligned(addresses: Sequence[int], itemsizes: Sequence[int]) -> list[int]:
    """Return which arrays of a tensor are read one element after the other, not 16 bytes at once.

    Vectors begin where most arrays are aligned; an array that begins elsewhere between multiples
    of 16 bytes costs itself its vectors, and no other array.

    Args:
        addresses: of the parameter, the gradient, the slots in use, and what lies beside the
            parameter.
        itemsizes: of their elements, in bytes.

    Returns:
        Their positions among ``addresses``.

    Example:
        >>> misaligned([4096, 8192 + 4, 12288], [4, 4, 4]), misaligned([4, 8196], [4, 4])
        ([1], [])
    """
    vector = 16 // max(itemsizes)
    phases = [place // size % vector for place, size in zip(addresses, itemsizes, strict=True)]
    param, grad, *slots = phases
    first = slots[0] if slots and param != grad else param
    return [position for position, phase in enumerate(phases) if phase != first]


def c_type(dtype: npt.DTypeLike) -> str:
    """Return the C++ type of elements of a dtype."""
    return C_TYPES[np.dtype(dtype).name]


def param_type(storage: Storage) -> str:
    """Return the C++ type that says how a parameter is stored."""
    if storage.master == "split":
        return "Split"
    if storage.master == "float32":
        return f"Mastered<{c_type(storage.param)}>"
    return slot_type(storage.param, 0)


def slot_type(dtype: npt.DTypeLike, number: int) -> str:
    """Return the C++ type of elements that are written; those of 16 bits are rounded at random.

    Args:
        dtype: of the elements.
        number: by which the random bits of arrays of one parameter are told apart.
    """
    return f"Rounded<{number}>" if np.dtype(dtype) == BFLOAT16 else c_type(dtype)


def functor(rule: Rule, variant: Any, dtype: npt.DTypeLike) -> str:
    """Return the C++ type of a rule's variant, ``Adam<float, 1>`` for example.

    A switch counts as the position of its value among its choices.

    Args:
        rule: the rule.
        variant: the choice of its switches.
        dtype: what it computes in.
    """
    switches = [str(_position(choices, getattr(variant, name))) for name, choices in rule.switches]
    return f"{rule.functor}<{', '.join([c_type(dtype), *switches])}>"


def phases(rule: Rule) -> tuple[str, ...]:
    """Return the C++ templates of the launches of a rule, in their order."""
    return ("Measuring", "Finishing") if rule.sums else ("Stored",)


def stored(
    rule: Rule, variant: Any, storage: Storage, phase: int = 0, telemetry: bool = False
) -> str:
    """Return the C++ type of a phase of a variant, with what its slots are stored as."""
    types = [functor(rule, variant, storage.compute), *slot_types(rule, variant, storage)]
    own = f"{phases(rule)[phase]}<{', '.join(types)}>"
    return f"Watching<{own}>" if telemetry and phase == len(phases(rule)) - 1 else own


def slot_types(rule: Rule, variant: Any, storage: Storage) -> list[str]:
    """Return the C++ types of the slots of a variant."""
    dtypes = [storage.used(rule, variant)[name] for name in rule.used_slots(variant)]
    return [
        slot_type(dtype, random_number(rule, variant, 1 + position))
        for position, dtype in enumerate(dtypes)
    ]


def random_number(rule: Rule, variant: Any, position: int) -> int:
    """Return by which number the random bits of an array are told from others of its parameter.

    Args:
        rule: the rule.
        variant: the choice of its switches.
        position: 0 for the parameter, then the slots in use.
    """
    return 1 + rule.slots.index(rule.used_slots(variant)[position - 1]) if position else 0


def storage_types(storage: Storage) -> list[str]:
    """Return the C++ types of what computes, of the parameter, and of the gradient."""
    return [c_type(storage.compute), param_type(storage), c_type(storage.grad)]


def kernel_name(
    rule: Rule, kinds: Sequence[Any], storage: Storage, phase: int = 0, telemetry: bool = False
) -> str:
    """Return the name expression of the kernel for some variants of a rule."""
    types = storage_types(storage)
    types += [stored(rule, kind, storage, phase, telemetry) for kind in kinds]
    return f"fused_step<{', '.join(types)}>"


def common_layout(arrays: Sequence[Any]) -> int:
    """Return the orders in which all arrays are contiguous: C_ORDER, F_ORDER, their sum or 0.

    Arrays that share one can be flattened together without a copy.
    """
    return reduce(and_, map(contiguity, arrays)) & DENSE


def _position(choices: tuple[Any, ...], value: Any) -> int:
    return next(
        i for i, choice in enumerate(choices) if type(choice) is type(value) and choice == value
    )
