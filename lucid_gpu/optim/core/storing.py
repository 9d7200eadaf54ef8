"""What the options of a group ask its parameters and slots to be stored as."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lucid_gpu.device import torch_tensors
from lucid_gpu.execution import formats
from lucid_gpu.execution.rule import BESIDE, BFLOAT16, Rule, Storage
from lucid_gpu.optim.core import checks
from lucid_gpu.parameter import gradient_dtypes

MASTERS = (None, "float32", "split", "none")
"""Choices of the option ``master``."""

STATE_DTYPES = (None, "bfloat16")
"""Choices of the option ``state_dtype``."""


class Policy(NamedTuple):
    """How a group is stored: its options ``master``, ``state_dtype`` and ``seed``."""

    master: str | None
    state_dtype: str | None
    seed: int


def require_valid(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless the options of storage are within their bounds."""
    checks.one_of(options, "master", MASTERS)
    checks.one_of(options, "state_dtype", STATE_DTYPES)
    checks.integer(options, "seed", 0, 2**64 - 1)


def policy(options: Mapping[str, Any]) -> Policy:
    """Return how the options of a group ask it to be stored."""
    return Policy(options["master"], options["state_dtype"], options["seed"])


def storage(rule: Rule, asked: Policy, param: np.dtype[Any], grad: np.dtype[Any]) -> Storage:
    """Return what the arrays of a parameter are stored as.

    Args:
        rule: the rule.
        asked: what its group asks for.
        param: the dtype of the parameter.
        grad: the dtype of its gradients.
    """
    master = "none"
    if param in formats.HALVES:
        master = asked.master or "float32"
    compute = Storage(param, grad, ()).compute
    state = BFLOAT16 if asked.state_dtype == "bfloat16" else compute
    return Storage(param, grad, (state,) * len(rule.slots), master)


def problems(name: str, asked: Policy, param: np.dtype[Any]) -> list[str]:
    """Return, in words, why a parameter cannot be stored as its group asks for."""
    found = []
    if asked.master == "split" and param != BFLOAT16:
        found.append(
            f"parameter {name!r} is {param}, but master='split' splits bfloat16 parameters: put it "
            "into a group with master=None"
        )
    if asked.master == "none" and param == np.float16:
        found.append(
            f"parameter {name!r} is float16, whose updates would be lost with master='none': use "
            "master=None"
        )
    if asked.state_dtype is not None and param == np.float64:
        found.append(
            f"parameter {name!r} is float64, which state_dtype={asked.state_dtype!r} would belie: "
            "use state_dtype=None"
        )
    return found


def leftovers(name: str, kept: Mapping[str, Any], used: Mapping[str, Any]) -> list[str]:
    """Return, in words, why the master that a parameter has is not the one that is asked for."""
    return [
        f"parameter {name!r} has its exact value in the slot {slot!r}, which another value of the "
        "option master would forget: set the option as it was"
        for own in BESIDE.values()
        for slot in own
        if slot in kept and slot not in used
    ]


def gradient_dtype(param: Any, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype that the gradients of a parameter have.

    Args:
        param: the parameter; its ``grad_dtype`` says it if it has one.
        dtype: of its data.
    """
    try:
        asked = getattr(param, "grad_dtype", None)
    except RuntimeError:  # of a tensor of PyTorch that has a history
        return dtype
    if torch_tensors.is_tensor(param):
        asked = str(asked).removeprefix("torch.") if asked is not None else None
    try:
        own = dtype if asked is None else np.dtype(asked)
    except TypeError:  # a dtype of another framework
        return dtype
    return own if own in gradient_dtypes(dtype) else dtype
