"""flatten: many parameters as views of one, so that steps, norms and zeroing see one array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lucid_gpu.device import gpu, transfer
from lucid_gpu.parameter import Parameter
from lucid_gpu.row_gradient import RowGradient


class FlatParameter(Parameter):
    """A one-dimensional parameter whose memory other parameters share; :func:`flatten` makes it.

    Attributes:
        members: the parameters that are views of it, in the order of their elements.
    """

    def __init__(self, members: list[Parameter], data: Any, grad: Any, name: str | None) -> None:
        super().__init__(data, name=name)
        self.members = members
        self.rehome(data, grad)

    def to(self, device: str) -> FlatParameter:
        """Move data and gradient to a device, and the members with them."""
        device = gpu.resolve(device)
        if self.device != device:
            self.rehome(transfer.copy(self.data, device), transfer.copy(self.grad, device))
        return self

    def rehome(self, data: Any, grad: Any, stays: bool = True) -> None:  # noqa: ARG002 - always
        """Replace both buffers, and make the members views of the new ones."""
        super().rehome(data, grad, stays=True)
        start = 0
        for member in self.members:
            stop = start + member.size
            own_data, own_grad = (b[start:stop].reshape(member.shape) for b in (data, grad))
            member.rehome(own_data, own_grad, stays=True)
            start = stop


def flatten(params: Iterable[Parameter], name: str | None = None) -> FlatParameter:
    """Give parameters a new home in one contiguous buffer, and their gradients in another.

    The parameters keep their identity, names and shapes; their data and gradients become views.
    Train the result instead of them: ``Adam([flatten(params)])`` makes one tensor of thousands, so
    that a step looks at one gradient, ``zero_grad`` is one fill, and a norm or an all-reduce of
    ``flat.grad`` is one call. What is assigned to a member is copied into its view; assigning None
    to a gradient fills it with zeros, so that every element always steps. All members share the
    options of one group.

    Args:
        params: parameters of one dtype and device. Gradients they have are kept, others are zeros.
        name: the name of the result.

    Returns:
        The parameter that owns the buffers.

    Raises:
        TypeError: an element is no :class:`Parameter`, or holds text.
        ValueError: there is none, one is there twice, is part of another flat parameter or takes
            no gradient, or dtypes or devices differ.

    Example:
        >>> w, b = Parameter([[1.0, 2.0]], name="w"), Parameter([3.0], name="b")
        >>> flat = flatten([w, b])
        >>> w.grad, b.grad = w.data * 2, b.data * 2
        >>> flat.grad.tolist()
        [2.0, 4.0, 6.0]
        >>> flat.data -= 0.5 * flat.grad
        >>> w.numpy().tolist()
        [[0.0, 0.0]]
    """
    members = list(params)
    _check(members)
    first = members[0]
    xp = gpu.module(first.device)
    size = sum(member.size for member in members)
    with gpu.on(first.device):
        data, grad = xp.empty(size, first.dtype), xp.zeros(size, first.dtype)
        start = 0
        for member in members:
            stop = start + member.size
            data[start:stop] = member.data.reshape(-1)
            if member.grad is not None:
                grad[start:stop] = member.grad.reshape(-1)
            start = stop
    return FlatParameter(members, data, grad, name)


def _check(members: list[Any]) -> None:
    if not members:
        raise ValueError("params is empty: there is nothing to flatten")
    seen: set[int] = set()
    for position, member in enumerate(members):
        label = f"element {position} of params"
        if not isinstance(member, Parameter) or member.is_text:
            raise TypeError(f"{label} is a {type(member).__name__}, not a Parameter of numbers")
        if id(member) in seen:
            raise ValueError(f"{label} is there twice: pass each parameter once")
        seen.add(id(member))
        if member.stays:
            raise ValueError(f"{label} is part of a flat parameter already")
        if not member.requires_grad:
            raise ValueError(f"{label} has requires_grad=False: leave it out")
        if isinstance(member.grad, RowGradient):
            raise ValueError(f"{label} has a gradient of rows: make it dense, or drop it")
        for what in ("dtype", "device"):
            have, want = getattr(member, what), getattr(members[0], what)
            if have != want:
                raise ValueError(
                    f"{label} has {what} {have}, the first has {want}: flatten them apart"
                )
