"""Outcomes: what the gradients of a step amount to, and whether and by which factor it is taken.

On a GPU the outcome stays there, beside the kernels that read it. A copy follows to the host, which
looks for it now and then and waits only when too many are under way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, transfer
from lucid_gpu.device.keep import MadeOn, Use
from lucid_gpu.execution import cuda_sums
from lucid_gpu.execution.cpu_sums import CpuSums
from lucid_gpu.execution.cuda_sums import JUDGED, CudaSums
from lucid_gpu.execution.sources import joined

RECORD = np.dtype(
    [
        ("factor", "f8"),
        ("norm", "f8"),
        ("nonfinite", "i8"),
        ("single_factor", "f4"),
        ("scale", "f4"),
        ("skips", "i4"),
        ("skipped", "i4"),
    ]
)
"""What a device knows of the last step: ``Outcome`` of ``kernels/rule.cuh``."""

WINDOW = 16
"""How many outcomes may be unknown to the host before it waits for the first of them."""

EPSILON = 1e-6
"""Is added to the norm that gradients are clipped by, as PyTorch does."""


class Outcome(NamedTuple):
    """What the gradients of a step amounted to.

    Attributes:
        norm: the 2-norm of all gradients of the optimizer, divided by the scale; NaN if it was not
            measured, because a scaler of PyTorch had looked at the gradients.
        factor: what each gradient was multiplied by: 1 / scale, less if it was clipped.
        nonfinite: how many elements of gradients are infinite or NaN; −1 if they were not counted.
        skipped: whether the step was skipped, because some were.
        scale: of the loss; 1 without a scaler.
    """

    norm: float
    factor: float
    nonfinite: int
    skipped: bool
    scale: float


class Terms(NamedTuple):
    """By what a step is judged.

    Attributes:
        max_norm: the bound of the norm, or None.
        may_skip: whether a step with gradients that are not finite is skipped.
        scale: a float32 array of one element on the device of the gradients, by which the loss was
            multiplied; or None. On a GPU, its address will do.
        found: an int32 there that notes whether elements were not finite; or None. If the gradients
            are checked, it may be a float32.
        heeds: whether a step is skipped for what that noted before.
        are_checked: whether that is all there is to know of elements that are not finite, so that
            gradients are measured for ``max_norm`` alone.
    """

    max_norm: float | None = None
    may_skip: bool = False
    scale: Any = None
    found: Any = None
    heeds: bool = False
    are_checked: bool = False

    @property
    def measures(self) -> bool:
        """Whether gradients have to be measured."""
        return self.max_norm is not None or not self.are_checked


def terms_of(groups: Sequence[Mapping[str, Any]]) -> Terms:
    """Return by what the groups of an optimizer ask its steps to be judged.

    Raises:
        ValueError: they differ, though the norm is one of all gradients.
    """
    if not groups:
        return Terms()
    first = groups[0]
    for option in ("max_norm", "skip_nonfinite"):
        for number, group in enumerate(groups):
            if group[option] != first[option]:
                raise ValueError(
                    f"{option} is {first[option]!r} in parameter group 0 and {group[option]!r} in "
                    f"group {number}: gradients are measured together, so set it alike in all"
                )
    return Terms(first["max_norm"], first["skip_nonfinite"])


class Handed(NamedTuple):
    """What a step is handed of its outcome.

    Attributes:
        factor: of the gradients, where the host knows it.
        address: of the outcome on the device, or 0.
        base: how many skipped steps the rows of scalars know of.
        stride: from a row to the one for a skipped step more.
    """

    factor: float = 1.0
    address: int = 0
    base: int = 0
    stride: int = 0


PLAIN = Handed()
"""Of a step that nothing was measured for."""


def judged(total: float, count: int, terms: Terms) -> Outcome:
    """Return the outcome of gradients.

    Args:
        total: the canonical sum of squares; NaN if they were not measured.
        count: of elements that are not finite; −1 likewise.
        terms: by which they are judged.
    """
    scale = 1.0 if terms.scale is None else float(terms.scale[0])
    with np.errstate(all="ignore"):
        norm = np.sqrt(np.float64(total)) / scale
        factor = 1.0 / np.float64(scale)
        if terms.max_norm is not None:
            bound = terms.max_norm / (norm + EPSILON)
            factor = factor * (1.0 if bound > 1.0 else bound)
    is_bad = count > 0 or (terms.heeds and terms.found is not None and bool(terms.found[0]))
    if terms.found is not None and count > 0:
        terms.found[...] = 1
    return Outcome(float(norm), float(factor), count, terms.may_skip and is_bad, scale)


class CpuOutcomes:
    """Outcomes of gradients on the host, which knows each at once.

    Args:
        sizes: how many elements each gradient has.
        dtypes: of each.

    Attributes:
        have_measured: whether the last gradients were measured.
    """

    def __init__(self, sizes: Sequence[int], dtypes: Sequence[np.dtype[Any]]) -> None:
        self.sums = CpuSums(sizes, dtypes)
        self.have_measured = False

    def judge(self, grads: Callable[[], Sequence[Any]], terms: Terms) -> Outcome:
        """Return what gradients amount to.

        Args:
            grads: returns them, None for those that are absent.
            terms: by which they are judged.
        """
        self.have_measured = terms.measures
        if not terms.measures:
            return judged(math.nan, -1, terms)
        self.sums.take(grads())
        self.sums.run()
        return judged(float(self.sums.total[0]), int(self.sums.total_count[0]), terms)


class CudaOutcomes:
    """Outcomes of gradients on a GPU, which reach the host later.

    Args:
        home: the device.
        sizes: how many elements each gradient has.
        dtypes: of each.
        made: on which devices and streams gradients were made, as far as is known.

    Attributes:
        latest: the last one that has arrived, or None.
        known_skips: how many skipped steps the host knows of.
        have_measured: whether the last gradients were measured.
    """

    def __init__(
        self,
        home: str,
        sizes: Sequence[int],
        dtypes: Sequence[np.dtype[Any]],
        made: Collection[MadeOn] = (),
    ) -> None:
        self._home = home
        self._use = Use(home, made)
        self._measured = home, sizes, dtypes, made
        with gpu.on(home):
            cp = gpu.cupy()
            self._record = cp.zeros(RECORD.itemsize, np.uint8)
            self._use.keep(self, self._record)
            self._copies = transfer.pinned((WINDOW, RECORD.itemsize), np.uint8)
            self._use.keep(self, self._copies, is_pinned=True)
            self._events = [cp.cuda.Event(disable_timing=True) for _ in range(WINDOW)]
        self._waiting: deque[tuple[int, bool]] = deque()
        self._turn = 0
        self.latest: Outcome | None = None
        self.known_skips = 0
        self.have_measured = False

    @cached_property
    def sums(self) -> CudaSums:
        """What measures gradients, made when they are first measured."""
        return CudaSums(*self._measured)

    @property
    def address(self) -> int:
        """Where the outcome of the last step lies on the device."""
        return int(self._record.data.ptr)

    @property
    def unknown(self) -> int:
        """How many steps may have been skipped without that the host knows it yet."""
        return sum(may_skip for _, may_skip in self._waiting)

    def take(
        self,
        grads: Sequence[Any] | None,
        noted: tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]] | None,
    ) -> bool:
        """Take the gradients of the next step; False if the arrays themselves are needed.

        Args:
            grads: the arrays, None for those that are absent; or None as a whole.
            noted: else what the ledger says of them.
        """
        if grads is not None:
            self.sums.take(grads)
            return True
        assert noted is not None
        return self.sums.move(*noted)

    def judge(self, terms: Terms) -> None:
        """Measure the gradients that were taken, if terms ask for it, and write their outcome."""
        judged = np.zeros((), JUDGED)
        judged["scale"], judged["found"] = _place(terms.scale), _place(terms.found)
        judged["outcome"] = self._record.data.ptr
        judged["max_norm"] = terms.max_norm or 0.0
        judged["may_skip"], judged["heeds"] = terms.may_skip, terms.heeds
        self.have_measured = terms.measures
        with gpu.on(self._home):
            stream = self._use.stream()
            if terms.measures:
                self.sums.run(judged)
            else:
                cuda_sums.judge(judged, stream)

    def send(self, may_skip: bool) -> None:
        """Have the outcome of the step that was launched copied to the host."""
        if len(self._waiting) == WINDOW:
            self._wait()
        with gpu.on(self._home):
            stream = self._use.stream()
            turn, self._turn = self._turn, (self._turn + 1) % WINDOW
            place = self._copies[turn].ctypes.data
            self._record.data.copy_to_host_async(place, RECORD.itemsize, stream)
            self._events[turn].record(stream)
        self._waiting.append((turn, may_skip))

    def poll(self) -> int:
        """Take the outcomes that have arrived, and return how many of them were skipped steps."""
        known = self.known_skips
        while self._waiting and self._events[self._waiting[0][0]].done:
            self._arrive()
        return self.known_skips - known

    def settle(self) -> int:
        """Wait for all outcomes, and return how many of them were skipped steps."""
        known = self.known_skips
        while self._waiting:
            self._wait()
        return self.known_skips - known

    @property
    def has_room(self) -> bool:
        """Whether another outcome can be sent without waiting for one."""
        return len(self._waiting) < WINDOW

    def _wait(self) -> None:
        self._events[self._waiting[0][0]].synchronize()
        self._arrive()

    def _arrive(self) -> None:
        turn, _ = self._waiting.popleft()
        (record,) = self._copies[turn].view(RECORD)
        names = ("norm", "factor", "nonfinite", "skipped", "scale")
        norm, factor, nonfinite, skipped, scale = (record[name].item() for name in names)
        self.latest = Outcome(norm, factor, nonfinite, bool(skipped), scale)
        self.known_skips += int(skipped)


def _place(array: Any) -> int:
    """Return the address of an array of a GPU, which may be given by it; 0 for None."""
    if array is None or isinstance(array, int):
        return array or 0
    return int(array.data.ptr)


def source() -> str:
    """Return the text of the kernel that adjusts scales."""
    return joined("half", "rule", "judge")
