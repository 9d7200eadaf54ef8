"""What the first phase of a rule measures, folded on the CPU to totals of tensors."""

from __future__ import annotations

import numpy as np

from lucid_gpu.execution import sums
from lucid_gpu.execution.plan import TensorGroup

DOUBLE = np.dtype(np.float64)


class Totals:
    """Sums of chunks, and what they fold to in the canonical order.

    Args:
        tensors: what is measured.

    Attributes:
        chunks: the sums of each kind, of each chunk.
        totals: of each tensor, of each kind.
    """

    def __init__(self, tensors: TensorGroup) -> None:
        sizes = [param.size for param in tensors.params]
        kinds = len(tensors.rule.sums)
        self._plan = sums.plan_sums(sizes, [DOUBLE] * len(sizes))
        self.chunks = np.zeros((kinds, len(self._plan.chunks)))
        self.totals = np.zeros((len(sizes), kinds))

    def fold(self) -> None:
        """Fold chunks to pages and pages to tensors."""
        with np.errstate(all="ignore"):
            for kind, own in enumerate(self.chunks):
                pages = sums.fold(own, self._plan.pages)
                self.totals[:, kind] = sums.fold(pages, self._plan.tensors)
