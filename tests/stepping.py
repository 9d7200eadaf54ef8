"""Steps of the same tensors on two devices, and their comparison to the bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lucid_gpu import Parameter
from lucid_gpu.device import transfer

GUARD = 12345.0
"""What lies around the elements of a view, and must stay."""


class Tensor(NamedTuple):
    """A parameter to be: its values, its gradient at each step, and how its arrays are laid out."""

    values: np.ndarray
    grads: list[np.ndarray]
    layouts: tuple[Any, ...] = ("C",)

    def layout(self, position: int) -> Any:
        """The layout of the parameter (0), the gradient (1) and the slots (2, …), in turn."""
        return self.layouts[position % len(self.layouts)]


class Placed(NamedTuple):
    """A view on a device, the memory that it is a view of, and which of that it leaves out."""

    view: Any
    base: Any
    guarded: np.ndarray


def place(values: np.ndarray, device: str, layout: Any = "C") -> Placed:
    """Copy values to a device, laid out as asked.

    Args:
        values: the elements.
        device: where to.
        layout: ``"C"``, ``"F"``, ``"strided"`` (every second element), ``"reversed"``, or how many
            elements precede the first in its memory.
    """
    if isinstance(layout, int):
        base = np.full(layout + values.size + 5, GUARD, values.dtype)
        cut = (slice(layout, layout + values.size),)
    elif layout == "strided" and values.ndim:
        base = np.full((*values.shape[:-1], 2 * values.shape[-1]), GUARD, values.dtype)
        cut = (..., slice(None, None, 2))
    elif layout == "reversed" and values.ndim:
        base, cut = np.empty_like(values, order="C"), (slice(None, None, -1),)
    else:
        base = np.array(values, order="F" if layout == "F" else "C")
        cut = ()
    guarded = np.ones(base.shape, bool)
    guarded[cut] = False
    base[cut] = values.reshape(base[cut].shape)
    home = transfer.copy(base, device)
    return Placed(home[cut].reshape(values.shape) if cut else home, home, guarded)


def host(array: Any) -> np.ndarray:
    """Return an array, or a number, as NumPy's array."""
    return transfer.to(np.float64(array) if isinstance(array, float) else array, "cpu")


def bits(array: Any) -> np.ndarray:
    """Return an array's bits, every NaN the same: which NaN comes out is no machine's promise."""
    values = np.array(host(array), order="C")
    values[np.isnan(values)] = np.nan
    return values.view(f"u{values.dtype.itemsize}")


def steps(rule: Any, groups: list[tuple[dict[str, Any], list[Tensor]]], device: str) -> list[Any]:
    """Step groups of tensors and return the bits of every array after every step.

    Raises:
        AssertionError: something around the elements of a view, or a gradient, has changed.
    """
    params: list[Parameter] = []
    settings, bases, tensors = [], [], []
    for options, own in groups:
        placed = [place(tensor.values, device, tensor.layout(0)) for tensor in own]
        bases += placed
        tensors += own
        settings.append({**options, "params": [Parameter(one.view) for one in placed]})
        params += settings[-1]["params"]
    optimizer = rule(settings)
    _prepare_slots(optimizer, tensors, bases, device)
    history = []
    for number in range(len(tensors[0].grads)):
        given = []
        for param, tensor in zip(params, tensors, strict=True):
            given.append(place(tensor.grads[number], device, tensor.layout(1)))
            param.grad = given[-1].view
        optimizer.step()
        for one, tensor in zip(given, tensors, strict=True):
            np.testing.assert_array_equal(bits(one.view), bits(tensor.grads[number]))
        slots = [optimizer.state[param] for param in params]
        arrays = [own[name] for own in slots for name in own if name != "step"]
        history.append([bits(array) for array in [param.data for param in params] + arrays])
    _check_guards(bases)
    return history


def _prepare_slots(optimizer: Any, tensors: list[Tensor], bases: list[Placed], device: str) -> None:
    """Give parameters whose layouts name it slots of other layouts than their own."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    variants = {
        id(param): optimizer.variant_of(group)
        for group in optimizer.param_groups
        for param in group["params"]
    }
    for param, tensor in zip(params, tensors, strict=True):
        if len(tensor.layouts) < 3:
            continue
        optimizer.state[param]["step"] = 0
        used = optimizer.used_slots(variants[id(param)])
        for number, slot in enumerate(used):
            zeros = place(np.zeros_like(tensor.values), device, tensor.layout(2 + number))
            optimizer.state[param][slot] = zeros.view
            bases.append(zeros)


def _check_guards(bases: list[Placed]) -> None:
    for _, base, guarded in bases:
        assert (host(base)[guarded] == GUARD).all()
