"""Options as PyTorch spells them, in the words of this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lucid_gpu.optim.core.pytorch import Counterpart

EXECUTION = ("foreach", "fused", "capturable", "differentiable")
"""Options of PyTorch that say how a step runs, not what it computes."""


def own(options: Mapping[str, Any], counterpart: Counterpart) -> dict[str, Any]:
    """Return options with numbers in place of tensors, and in the words of this package.

    Args:
        options: as PyTorch spells them.
        counterpart: which of them mean another thing there.

    Raises:
        ValueError: a tensor has more than one element, or a switch is not True or False.
    """
    found = {}
    for name, value in options.items():
        names = {there: here for here, there in counterpart.spelled.get(name, {}).items()}
        if names and not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, not {value!r}")
        found[name] = names[value] if names else _number(name, value)
    return found


def take_execution(options: dict[str, Any], name: str) -> None:
    """Take the options that say how PyTorch runs out of others.

    ``foreach`` and ``fused`` choose between implementations, of which there is one here.

    Raises:
        TypeError: state is to be elsewhere.
        ValueError: one asks for what there is not.
    """
    if options.pop("state_device", None) is not None:
        raise TypeError(
            f"{name} does not support state_device here: its state is in memory of PyTorch's "
            f"allocator, beside the parameters; lucid_gpu.optim.{name} takes PyTorch's parameters, "
            "too, and keeps their state on the host"
        )
    given = {key: options.pop(key) for key in EXECUTION if key in options}
    if given.get("differentiable"):
        raise ValueError(
            f"{name} does not support differentiable=True: autograd cannot go back through its "
            f"step; use torch.optim.{name}"
        )
    if given.get("capturable"):
        raise ValueError(
            f"{name} does not support capturable=True: every step can be captured, and "
            "before_replay() counts each replay; leave capturable out"
        )


def has_tensors(value: Any) -> bool:
    """Say whether an option holds tensors, whose numbers may change while they stay."""
    if isinstance(value, tuple | list):
        return any(map(has_tensors, value))
    return isinstance(value, torch.Tensor)


def _number(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{name} must be a number or a tensor of one element, not one of {value.numel()}"
            )
        return value.item()
    if isinstance(value, tuple | list):
        return type(value)(_number(f"{name}[{i}]", each) for i, each in enumerate(value))
    return value
