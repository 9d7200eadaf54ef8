"""What chunks of tensors add up to on the CPU, folded to totals of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lucid_gpu.execution import sums

DOUBLE = np.dtype(np.float64)


class Totals:
    """Sums of chunks, and what they fold to in the canonical order.

    Args:
        sizes: how many elements each tensor has.
        kinds: how many sums are taken of a tensor.

    Attributes:
        chunks: the sums of each kind, of each chunk.
        totals: of each tensor, of each kind.
    """

    def __init__(self, sizes: Sequence[int], kinds: int) -> None:
        self._plan = sums.plan_sums(sizes, [DOUBLE] * len(sizes))
        self.chunks = np.zeros((kinds, len(self._plan.chunks)))
        self.totals = np.zeros((len(sizes), kinds))

    def fold(self) -> None:
        """Fold chunks to pages and pages to tensors."""
        with np.errstate(all="ignore"):
            for kind, own in enumerate(self.chunks):
                pages = sums.fold(own, self._plan.pages)
                self.totals[:, kind] = sums.fold(pages, self._plan.tensors)
