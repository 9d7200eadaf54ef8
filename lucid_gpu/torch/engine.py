"""Engine: what makes the class of a rule step tensors of PyTorch, with state of PyTorch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lucid_gpu.device import gpu, torch_tensors
from lucid_gpu.device.arrays import address
from lucid_gpu.execution.outcome import Terms
from lucid_gpu.optim import FusedOptimizer
from lucid_gpu.optim.core import storing
from lucid_gpu.optim.core.groups import named
from lucid_gpu.optim.core.inputs import Inputs
from lucid_gpu.optim.core.torch_inputs import TorchInputs
from lucid_gpu.torch.state import TorchState

DTYPES: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int16": torch.int16,
    "uint8": torch.uint8,
}
"""What memory of slots is made of, by the names of NumPy."""


class Engine(FusedOptimizer):
    """A fused optimizer whose groups follow those of PyTorch's, and whose slots are tensors."""

    requires_parameters = False

    def __init__(self, **options: Any) -> None:
        super().__init__([], **options)
        self.state: TorchState = TorchState()

    def inputs_of(self, groups: Sequence[dict[str, Any]]) -> Inputs:
        """Return what reads the parameters of groups at each step.

        Raises:
            ValueError: parts of a ``DTensor`` would be rounded stochastically, for which they would
                have to know their place in the whole.
        """
        for group in groups:
            for name, param in named(group):
                policy = storing.policy(group)
                rounds = policy.master == "none" or policy.state_dtype is not None
                if rounds and torch_tensors.is_distributed(param):
                    raise ValueError(
                        f"parameter {name!r} is a {type(param).__name__}, which is not rounded "
                        "stochastically: use master=None and state_dtype=None"
                    )
        return _Inputs(groups, list(self.defaults), self.state)

    def go(self, scale: Any = None, found: Any = None) -> None:
        """Take, or record, a step on the current streams of PyTorch.

        Args:
            scale: a tensor of one element by which gradients are divided, or None.
            found: one that is not 0 if the step is to be skipped, or None.

        Raises:
            TypeError: one of them is no tensor.
            ValueError: one of them has not one element.
        """
        self.require_ready()
        devices = self.cuda_devices()
        with streams(devices) if devices else contextlib.nullcontext():
            if scale is None and found is None:
                self.advance()
                return
            # They are launched on before PyTorch can reuse their memory, which follows the stream.
            held: list[torch.Tensor | None] = []

            def terms_on(home: str) -> Terms:
                held[:] = _single("grad_scale", scale, home), _single("found_inf", found, home)
                own_scale, own_found = (_handed(each, home) for each in held)
                return Terms(None, True, own_scale, None, own_found, found is not None)

            with self.scaled_by(terms_on):
                self.advance()

    def cuda_devices(self) -> set[str]:
        """Return the GPUs on which parameters are."""
        known = self._prepared.devices if self._prepared is not None else self._homes()
        return known - {"cpu"}

    def heal(self) -> None:
        """Take the state for whole again, after an interrupted step, because it was loaded."""
        self._is_torn = False


class _Inputs(TorchInputs):
    """Inputs whose slots are tensors, in memory of PyTorch's allocator."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], keys: Sequence[str], state: TorchState
    ) -> None:
        self._state = state
        super().__init__(groups, keys)

    @staticmethod
    def zeros(home: str, shape: int | tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """Return zeros on a device, whose memory is PyTorch's."""
        made = torch.zeros(shape, dtype=DTYPES[dtype.name], device=home)
        return torch_tensors.as_array(made)

    def kept(self, position: int, arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return slots as tensors: those that stand in the state if they are the same memory."""
        present = self._state.get(self.params[position], {})
        views = self.arrays(position, present)
        made = super().kept(position, arrays)
        return {
            name: present[name]
            if name in present and address(views[name]) == address(array)
            else self._tensor(position, made[name])
            for name, array in arrays.items()
        }

    def _tensor(self, position: int, array: Any) -> Any:
        param, tensor = self.params[position], torch_tensors.from_array(array)
        if not torch_tensors.is_distributed(param):
            return tensor
        return type(param.data).from_local(
            tensor,
            param.device_mesh,
            param.placements,
            run_check=False,
            shape=param.shape,
            stride=param.stride(),
        )


def _single(name: str, value: Any, home: str) -> torch.Tensor | None:
    """Return a tensor of one float32 on a device, as a scaler of PyTorch hands it to a step."""
    if value is None:
        return None
    if isinstance(value, int | float):  # a scaler has found 0 where there are no gradients
        return torch.tensor(float(value), device=home)
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor of one element, not a {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"{name} must have one element, not {value.numel()}")
    if torch_tensors.home(value) == home and value.dtype is torch.float32:
        return value.detach()
    return value.detach().to(home, torch.float32)


def _handed(value: torch.Tensor | None, home: str) -> Any:
    """Return a tensor by its address if it is on a GPU, as an array on the CPU."""
    if value is None:
        return None
    return value.numpy().reshape(1) if home == "cpu" else value.data_ptr()


@contextlib.contextmanager
def streams(devices: Iterable[str]) -> Iterator[None]:
    """Make the streams that are current for PyTorch on some GPUs current for CuPy."""
    with contextlib.ExitStack() as stack:
        for device in devices:
            handle = torch.cuda.current_stream(device).cuda_stream
            stack.enter_context(gpu.on(device))
            stack.enter_context(gpu.foreign_stream(device, handle))
        yield
