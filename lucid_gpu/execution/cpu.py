"""Steps arrays on the CPU: by compiled code as soon as it is there, else by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lucid_gpu.device import gradient_table
from lucid_gpu.execution import building, compiled
from lucid_gpu.execution.blocks import THREAD_ELEMENTS, NumpyStep
from lucid_gpu.execution.compiled import CompiledStep
from lucid_gpu.execution.cpu_code import cpu_code, look_for_build
from lucid_gpu.execution.cpu_totals import Totals
from lucid_gpu.execution.numpy_sums import SummingStep
from lucid_gpu.execution.outcome import PLAIN, Handed
from lucid_gpu.execution.plan import WATCHED, TensorGroup
from lucid_gpu.execution.threads import thread_count

BEFORE_THE_FIRST_STEP = {
    "auto": "compiled code, or NumPy as long as there is none",
    "numpy": "NumPy",
    "compiled": "compiled code",
}


class CpuExecutor:
    """Steps NumPy arrays, with the same result whatever does it.

    Compiled code knows contiguous, aligned arrays; NumPy takes the others, and all of them until
    there is compiled code.

    Args:
        tensors: the arrays.
        grads: the gradient of each, or None.

    Attributes:
        needs_gradients: whether the next run wants the arrays of gradients to be looked at.
        present: which tensors have a gradient that was taken; the next ones may change the array.

    Raises:
        RuntimeError: compiled code was chosen and cannot be built.
        ValueError: an environment variable is set to something that it cannot be.
    """

    def __init__(self, tensors: TensorGroup, grads: Sequence[Any]) -> None:
        self._tensors = tensors
        self._build: building.Build | None = None
        self._compiled: CompiledStep | None = None
        self._numpy: NumpyStep | SummingStep | None = None
        sizes = [param.size for param in tensors.params]
        self._watched = Totals(sizes, len(WATCHED)) if tensors.telemetry else None
        self._threads = thread_count()
        # Fewer elements are stepped by one thread, whatever the environment says.
        self._may_share = sum(sizes) > THREAD_ELEMENTS
        self._uses_compiled = False
        self._is_left = True
        self._fitting: Any = None  # layouts that were found to fit, all of them
        self.needs_gradients = True
        self.get_ready()
        self.replace_gradients(grads)

    @property
    def reads_arrays(self) -> bool:
        """Whether runs read gradients as arrays: NumPy does, compiled code does not.

        Each run forgets them, so that their memory is free as soon as the training loop lets go.
        """
        return self._is_left

    def lend(self, grads: Sequence[Any]) -> None:
        """Have the next run read gradients which are those of the last run."""
        if self._numpy is not None:
            self._numpy.lend(grads)

    def get_ready(self) -> None:
        """Read the environment for the next run, and see whether the compiler is done.

        Raises:
            RuntimeError: compiled code was chosen and cannot be built.
            ValueError: an environment variable is set to something that it cannot be.
        """
        if self._may_share:
            self._threads = thread_count()
        choice = cpu_code()
        if choice != "numpy" and self._compiled is None:
            self._compiled, self._fitting = self._look_for_code(choice), None
        uses_compiled = choice != "numpy" and self._compiled is not None
        if uses_compiled is not self._uses_compiled:
            self._uses_compiled, self.needs_gradients = uses_compiled, True

    def replace_gradients(self, grads: Sequence[Any]) -> bool:
        """Take the gradients of the next run; None stands for a tensor that is left out."""
        self._fitting, self.needs_gradients = None, False
        identities = gradient_table.identities(grads)
        self.present = left = identities != 0
        if self._uses_compiled and self._compiled is not None:
            left = left & ~self._compiled.take_gradients(identities)
        self._leave_to_numpy(list(grads), left)
        return True

    def retake_gradients(self, grads: list[Any]) -> int:
        """Take gradients in place of those of the last run.

        Args:
            grads: NumPy arrays, or None for those that are absent.

        Returns:
            As :meth:`CompiledStep.retake_gradients` does.
        """
        if self.needs_gradients:
            return compiled.MISFITS
        if self._uses_compiled and self._compiled is not None:
            if self._is_left:
                return compiled.MISFITS
            found = self._compiled.retake_gradients(grads)
            self.present = self._compiled.present
            return found
        before, self.present = self.present, gradient_table.identities(grads) != 0
        self._leave_to_numpy(grads, self.present)
        are_others = before.tobytes() != self.present.tobytes()
        return compiled.OTHERS_PRESENT if are_others else compiled.ALIKE

    def move_gradients(
        self, identities: npt.NDArray[np.uint64], layouts: npt.NDArray[np.uint8]
    ) -> bool:
        """Take gradients that were noted; False if the arrays themselves are needed.

        Args:
            identities: of NumPy arrays; of tensors of other libraries, their addresses.
            layouts: ``ON_HOST`` for an identity, for an address its layout.
        """
        if self._compiled is None or not self._uses_compiled:
            return False
        if layouts is self._fitting:
            self._compiled.move_gradients(identities)
            return True  # as nothing was left
        is_named = layouts == gradient_table.ON_HOST
        if is_named.any():
            fits = self._compiled.take_gradients(identities * is_named)
        else:
            fits = self._compiled.take_addresses(identities, layouts)
            self._fitting = layouts if fits.all() else None
        self._is_left = bool(((layouts != gradient_table.ABSENT) & ~fits).any())
        return not self._is_left

    def renew(self, tensors: Sequence[int]) -> bool:
        """Look anew at the arrays of some tensors."""
        self._fitting, self.needs_gradients = None, True
        if self._compiled is not None:
            self._compiled.renew(tensors)
        if self._numpy is not None and not self._numpy.renew(tensors):
            self._numpy = None
        return True

    def run(
        self, rows: npt.NDArray[Any], row_of: npt.NDArray[np.int32], handed: Handed = PLAIN
    ) -> None:
        """Update every tensor that has a gradient.

        Args:
            rows: the scalars of each row.
            row_of: for each tensor, its row; another array if any is another than before.
            handed: by what the gradients are multiplied.
        """
        if self._uses_compiled and self._compiled is not None:
            self._compiled.run(rows, row_of, self._threads, handed.factor)
        if self._numpy is not None and self._is_left:
            self._numpy.run(rows, row_of, self._threads, handed.factor)

    def watched(self) -> npt.NDArray[np.float64]:
        """Return what the last step of each tensor told, a row of :data:`plan.WATCHED`."""
        assert self._watched is not None
        self._watched.fold()
        return self._watched.totals

    def describe(self) -> str:
        """Return what steps, and why NumPy does if it was not chosen."""
        if self._uses_compiled:
            return "compiled code"
        if self._build is None or self._build.library is not None:
            return "NumPy"
        return f"NumPy, for {self._build.failure or 'compiled code is still being built'}"

    def _leave_to_numpy(self, grads: list[Any], left: npt.NDArray[np.bool_]) -> None:
        """Have NumPy take the gradients of some tensors."""
        self._is_left = bool(left.any())
        if self._is_left:
            if self._numpy is None:
                if self._tensors.takes_sums:
                    self._numpy = SummingStep(self._tensors, self._watched)
                else:
                    self._numpy = NumpyStep(self._tensors)
            self._numpy.take_gradients(grads, left)

    def _look_for_code(self, choice: str) -> CompiledStep | None:
        text = compiled.source(self._tensors)
        self._build = build = look_for_build(text, choice, self._build, "step with")
        if build.library is None:
            return None
        return CompiledStep(self._tensors, build.library, self._watched)


def described(executor: Any) -> str:
    """Return what steps on how many threads, and why NumPy does if it was not chosen.

    Args:
        executor: what will step; anything else stands for one that is not made yet.
    """
    if isinstance(executor, CpuExecutor):
        code = executor.describe()
    else:
        code = BEFORE_THE_FIRST_STEP[cpu_code()]
    return f"{code}, on {thread_count()} threads"
