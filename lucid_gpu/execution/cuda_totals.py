"""Where steps leave sums of each tensor on a GPU: for the second phase of a rule, or to be told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gpu, transfer
from lucid_gpu.execution import sums
from lucid_gpu.execution.plan import FOLDING

if TYPE_CHECKING:
    from lucid_gpu.device.keep import Use

DOUBLE = np.dtype(np.float64)


class Totals:
    """Memory for the sums of chunks, pages and tensors, which the blocks that measure fold.

    Args:
        use: what keeps the memory as long as its device needs it.
        sizes: how many elements each tensor has.
        kinds: how many sums are taken of a tensor.

    Attributes:
        folding: where it is, for the argument of a kernel.
    """

    def __init__(self, use: Use, sizes: Sequence[int], kinds: int) -> None:
        cp = gpu.cupy()
        nodes = sums.plan_sums(sizes, [DOUBLE] * len(sizes)).nodes()
        values, arrived = cp.zeros((kinds, len(nodes))), cp.zeros(len(nodes), np.uint32)
        tree = cp.array(nodes.view(np.uint8))
        self._memory = values, arrived, tree
        self._count = len(sizes)
        use.keep(self, self._memory)
        self.folding: np.ndarray[Any, Any] = np.zeros((), FOLDING)
        self.folding["sums"], self.folding["stride"] = values.data.ptr, len(nodes)
        self.folding["nodes"], self.folding["arrived"] = tree.data.ptr, arrived.data.ptr

    def read(self) -> npt.NDArray[np.float64]:
        """Return the sums of each tensor, a row each; waits for the current stream."""
        values, *_ = self._memory
        host: npt.NDArray[np.float64] = transfer.to(values, "cpu")
        return host[:, host.shape[1] - self._count :].T
