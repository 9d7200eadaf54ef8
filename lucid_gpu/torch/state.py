"""State that holds tensors, and how it comes from and goes into state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lucid_gpu.optim.core.pytorch import Counterpart
from lucid_gpu.optim.core.state import Slots, State

EXACT = 2**24
"""The largest step count that float32, of which PyTorch makes them, tells from its neighbours."""


class TorchSlots(Slots):
    """The slots of one parameter: tensors, and numbers such as ``step``."""

    def __setitem__(self, name: str, value: Any) -> None:
        is_number = isinstance(value, torch.Tensor) and name == "step" and value.numel() == 1
        super().__setitem__(name, _count(value) if is_number else value)

    def copy(self) -> dict[str, Any]:
        """Return the slots as a dict."""
        return dict(self)


class TorchState(State):
    """A mapping from parameter to its slots, as ``torch.optim.Optimizer.state`` is one."""

    kind = TorchSlots

    def replace(self, entries: Mapping[Any, Mapping[str, Any]]) -> None:
        """Have these entries and no others."""
        made = [(param, self.make_slots(slots)) for param, slots in entries.items()]
        self.clear()
        for param, slots in made:
            self.put(param, slots)


def to_save(
    slots: Mapping[str, Any], options: Mapping[str, Any], counterpart: Counterpart
) -> dict[str, Any]:
    """Return slots as ``torch.optim`` saves them: the step count is a tensor.

    Args:
        slots: of a parameter.
        options: of its group, in the words of this package.
        counterpart: what PyTorch's class writes otherwise.
    """
    saved = dict(slots)
    if "step" in saved:
        dtype = torch.float32 if saved["step"] <= EXACT else torch.float64
        for name, work_out in counterpart.worked_out.items():
            made = work_out(options, saved["step"] + 1)
            saved[name] = torch.tensor(made, dtype=torch.get_default_dtype())
        saved["step"] = torch.tensor(float(saved["step"]), dtype=dtype)
    return saved


def loaded(
    slots: Mapping[str, Any], numbers: Mapping[str, Any], counterpart: Counterpart
) -> dict[str, Any]:
    """Return slots out of a state dict: what is one number here is a number.

    Args:
        slots: what was saved.
        numbers: the slots that are numbers.
        counterpart: what PyTorch's class writes otherwise.
    """
    left_out = counterpart.worked_out
    found = {
        name: value for name, value in slots.items() if value is not None and name not in left_out
    }
    for name in numbers:
        if isinstance(found.get(name), torch.Tensor) and found[name].numel() == 1:
            found[name] = found[name].item()
    if found:  # SGD keeps no count there, and its next step must not be taken for the first
        found["step"] = _count(found.get("step", 1))
    return found


def as_saved(slots: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return slots in the dtypes in which they were saved.

    Args:
        slots: as they were loaded, on the device of their parameter.
        saved: as they were saved.
    """
    found = dict(slots)
    for name, value in slots.items():
        before: Any = saved.get(name)
        are_tensors = isinstance(value, torch.Tensor) and isinstance(before, torch.Tensor)
        if are_tensors and value.dtype != before.dtype:
            found[name] = before.detach().to(value.device, copy=True)
    return found


def _count(step: Any) -> Any:
    """Return a step count as an int; what is none stays, to be refused."""
    number = step.item() if isinstance(step, torch.Tensor) and step.numel() == 1 else step
    is_whole = isinstance(number, float) and number.is_integer()
    return int(number) if is_whole else number
