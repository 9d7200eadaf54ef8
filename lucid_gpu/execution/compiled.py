"""Compiled code for the CPU: one pass over all tensors, from a rule's kernel text.

NumPy passes over a block once per operation; compiled code passes once for all of them, with the
same operations in the same order, so that the result is the same to the bit. It walks the tables
of a CUDA launch: Python computes nothing per tensor, nor for each of their groups.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table
from lucid_gpu.execution import plan, threads
from lucid_gpu.execution.cpu_totals import Totals
from lucid_gpu.execution.plan import TensorGroup
from lucid_gpu.execution.sources import parts, step_source

CHUNK_ELEMENTS = 1 << 15
"""Elements of a chunk: what a thread updates with one row of scalars before it looks for more."""

SHARE_ELEMENTS = 1 << 17
"""Elements that a thread takes at a time: few enough for the threads to end together."""

THREAD_ELEMENTS = 1 << 17
"""Elements below which another thread costs more than it saves."""

ARGUMENT = np.dtype(
    [(name, "u8") for name in ("chunks", "tensors", "grads", "rows", "table", "seed")]
    + [("factor", "f8"), ("shares", "u8"), ("count", "i4"), ("next", "i4")]
    + [("sums", "u8"), ("stride", "i8"), ("totals", "u8"), ("watched", "u8")]
)
"""What compiled code is called with: ``Argument`` of ``kernels/host_step.cuh``."""

LOOK = ctypes.PYFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_longlong,
    ctypes.c_longlong,
    ctypes.c_void_p,
    ctypes.c_void_p,
)
"""``look`` of ``kernels/host_look.cuh``: called with the interpreter's lock held, so that no array
goes away while it is looked at."""

RETAKE = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
"""``retake`` there, likewise."""

MISFITS, ALIKE, OTHERS_PRESENT = range(3)
"""What ``retake`` returns: ``Retaken`` of ``kernels/host_look.cuh``."""

STEPS = ("step", "finish")
"""The functions of a library, one for each phase of its rule."""

HEAD_BYTES = object.__basicsize__
"""Of every Python object, before the fields of an array begin."""


def source(tensors: TensorGroup) -> str:
    """Return the text whose library steps some tensors."""
    rule, storage = tensors.rule, tensors.storage
    own = parts(rule, tensors.telemetry, "host_")
    sums = ("sums", "host_measure") if own else ()
    text = step_source(rule.kernel, "host_step", "host_look", *sums, *own)
    for phase in range(len(plan.phases(rule))):
        types = plan.storage_types(storage)
        kinds = plan.distinct_variants(tensors)
        types += [plan.stored(rule, kind, storage, phase, tensors.telemetry) for kind in kinds]
        entry = f"host_step<{', '.join(types)}>(*argument)"
        text += f'\nextern "C" void {STEPS[phase]}(Argument* argument) {{ {entry}; }}\n'
    return text


class CompiledStep:
    """The tables of some tensors, and the code that walks them.

    Args:
        tensors: the arrays; kept, since the tables hold addresses only.
        library: what was built from their :func:`source`.
        watched: where it leaves what a step tells; None for steps that do not.

    Attributes:
        present: which tensors have a gradient that fits; the same array always.
    """

    def __init__(
        self, tensors: TensorGroup, library: ctypes.CDLL, watched: Totals | None = None
    ) -> None:
        self._tensors = tensors
        self._phases = [getattr(library, name) for name in STEPS[: len(plan.phases(tensors.rule))]]
        for step in self._phases:
            step.argtypes, step.restype = [ctypes.c_void_p], None
        self._look, self._retake = LOOK(("look", library)), RETAKE(("retake", library))
        count = len(tensors.params)
        most = plan.CHUNK_ELEMENTS if tensors.takes_sums else CHUNK_ELEMENTS
        self._plan = plan.build(tensors, plan.whole(tensors), [()] * count, most)
        self._sizes = np.array([param.size for param in tensors.params], np.int64)
        self._shares = _shares(self._plan.chunks["count"])
        self._layouts = np.zeros(count, np.uint8)
        self._grads = np.zeros(count, np.uint64)
        self.present = np.zeros(count, np.bool_)
        places = (own.ctypes.data for own in (self._layouts, self._grads, self.present))
        taken = [count, HEAD_BYTES, id(np.ndarray), id(None), *places]
        self._taken = np.array(taken, np.uint64)  # Taken of kernels/host_look.cuh
        self._place_of_taken = self._taken.ctypes.data
        self._table = np.zeros((0, len(plan.row_fields(tensors.rule))), tensors.storage.compute)
        self._row_of: npt.NDArray[np.int32] | None = None
        self._argument = np.zeros((), ARGUMENT)
        self._place = self._argument.ctypes.data
        kept = {"chunks": self._plan.chunks, "tensors": self._plan.tensors, "grads": self._grads}
        for name, array in {**kept, "shares": self._shares}.items():
            self._argument[name] = array.ctypes.data
        self._argument["count"] = len(self._shares) - 1
        self._argument["seed"] = tensors.seed
        self._argument["stride"] = len(self._plan.chunks)
        kinds = len(tensors.rule.sums)
        self._totals = Totals(self._sizes.tolist(), kinds) if kinds else None
        if self._totals is not None:
            self._argument["sums"] = self._totals.chunks.ctypes.data
            self._argument["totals"] = self._totals.totals.ctypes.data
        self._watched = watched
        if watched is not None:
            self._argument["watched"] = watched.chunks.ctypes.data
        self._elements = 0
        self.renew(range(count))

    def renew(self, tensors: Sequence[int]) -> None:
        """Look anew at the arrays of some tensors."""
        arrays = [self._tensors.arrays(tensor) for tensor in tensors]
        width = self._plan.tensors["array"].shape[1]
        padded = (own + (None,) * (width - len(own)) for own in arrays)
        addresses, layouts = self.look(gradient_table.identities(list(chain.from_iterable(padded))))
        numbers = np.array(tensors, np.intp)
        self._plan.tensors["array"][numbers] = addresses.reshape(-1, width)
        layouts[layouts == 0] = plan.ALL_LAYOUTS  # a slot that is not in use fits any
        common = np.bitwise_and.reduce(layouts.reshape(-1, width), axis=1)
        self._layouts[numbers] = common & self._tensors.orders

    def look(
        self, arrays: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        """Return addresses and layouts of arrays, named by their identities."""
        addresses = np.empty(len(arrays), np.uint64)
        layouts = np.empty(len(arrays), np.uint8)
        places = arrays.ctypes.data, addresses.ctypes.data, layouts.ctypes.data
        self._look(places[0], len(arrays), HEAD_BYTES, *places[1:])
        return addresses, layouts

    def take_gradients(self, grads: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Take the gradients of the next run and return which of them fit their tensor.

        Args:
            grads: for each tensor, the identity of its gradient, or 0 if it has none.
        """
        return self.take_addresses(*self.look(grads))

    def take_addresses(
        self, addresses: npt.NDArray[np.uint64], layouts: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.bool_]:
        """Take the gradients of the next run, which somebody holds, by address and layout.

        Returns:
            Which of them fit their tensor.
        """
        fits: npt.NDArray[np.bool_] = (layouts & self._layouts) != 0
        self._grads[:] = addresses * fits
        self._elements = int(self._sizes @ fits)
        self.present[:] = fits
        return fits

    def move_gradients(self, addresses: npt.NDArray[np.uint64]) -> None:
        """Take gradients that are laid out as those before, of which every one fitted."""
        self._grads[:] = addresses

    def retake_gradients(self, grads: list[Any]) -> int:
        """Take NumPy arrays, and None, in place of gradients which all fitted.

        Returns:
            ``ALIKE``; ``OTHERS_PRESENT`` if None stands elsewhere; ``MISFITS`` if one does not fit,
            so that they must be taken otherwise.
        """
        found: int = self._retake(id(grads), self._place_of_taken)
        if found == OTHERS_PRESENT:
            self._elements = int(self._sizes @ self.present)
        return found

    def run(
        self,
        rows: npt.NDArray[Any],
        row_of: npt.NDArray[np.int32],
        most_threads: int,
        factor: float = 1.0,
    ) -> None:
        """Update every tensor whose gradient fits, with the scalars of its row.

        Args:
            rows: the scalars of each row.
            row_of: for each tensor, its row.
            most_threads: how many threads may run.
            factor: of the gradients.
        """
        if not self._elements:
            return
        if len(rows) > len(self._table):
            self._table = np.zeros((len(rows), self._table.shape[1]), self._table.dtype)
            self._argument["table"] = self._table.ctypes.data
        self._table[: len(rows)] = rows
        if row_of is not self._row_of:
            self._row_of = np.ascontiguousarray(row_of, np.int32)
            self._argument["rows"] = self._row_of.ctypes.data
        self._argument["factor"] = factor
        count = max(1, min(most_threads, len(self._shares) - 1, self._elements // THREAD_ELEMENTS))
        for phase, step in enumerate(self._phases):
            if phase and self._totals is not None:
                self._totals.fold()
            self._argument["next"] = 0
            threads.together(count, step, self._place)


def _shares(counts: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Return where shares of the chunks begin, by their elements, and where the last one ends."""
    before = np.cumsum(counts, dtype=np.int64) - counts
    number = before // SHARE_ELEMENTS
    begins = np.flatnonzero(np.diff(number, prepend=-1))
    return np.append(begins, len(counts)).astype(np.int32)
