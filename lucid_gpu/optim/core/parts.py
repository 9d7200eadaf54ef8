"""Parts: the tensors of a step that one executor runs, because they are stored alike."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from lucid_gpu.device.arrays import device_of
from lucid_gpu.execution.cpu import CpuExecutor
from lucid_gpu.execution.cuda import CudaExecutor
from lucid_gpu.execution.plan import TensorGroup
from lucid_gpu.execution.rule import Rule, Storage
from lucid_gpu.optim.core import storing
from lucid_gpu.optim.core.groups import is_positional
from lucid_gpu.optim.core.inputs import Inputs
from lucid_gpu.optim.core.rows import Counts
from lucid_gpu.optim.core.storing import Policy
from lucid_gpu.optim.core.tensors import Tensor, numeric

Executor: TypeAlias = CpuExecutor | CudaExecutor


class Choice(NamedTuple):
    """What the options of a group ask for.

    Attributes:
        variant: of the rule.
        policy: what arrays are stored as.
    """

    variant: Any
    policy: Policy


class PartKind(NamedTuple):
    """What the tensors of a part have in common.

    Attributes:
        device: where they are.
        storage: what their arrays are stored as.
        seed: of their random bits.
        telemetry: whether their steps tell how far they move.
    """

    device: str
    storage: Storage
    seed: int
    telemetry: bool


class Part:
    """The tensors of one device and storage, and what steps them.

    Attributes:
        device: where they are.
        tensors: those of the parameters that may step.
        positions: of each among all parameters.
        is_all: whether all parameters are among them.
        group: their arrays, as the executor sees them.
        counts: how many steps each has made.
        executor: what runs them; None until the first step.
    """

    def __init__(
        self,
        rule: Rule,
        kind: PartKind,
        tensors: list[Tensor],
        streams: list[int],
        groups: Any,
        count: int,
    ) -> None:
        self.device, storage, seed, telemetry = kind
        self.tensors = tensors
        self.positions = np.array([tensor.position for tensor in tensors], np.intp)
        self.is_all = len(tensors) == count
        self.group = TensorGroup(
            rule,
            storage,
            [tensor.data for tensor in tensors],
            [None] * len(tensors),
            [tensor.variant for tensor in tensors],
            streams,
            seed,
            telemetry,
        )
        group_of = np.array([tensor.group for tensor in tensors], np.intp)
        self.counts = Counts(rule, groups, group_of, storage)
        self.executor: Executor | None = None

    def of(self, column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return from a column of all parameters what belongs to its tensors."""
        return column if self.is_all else column[self.positions]


def grouped(rule: Rule, inputs: Inputs, choices: Sequence[Choice], telemetry: bool) -> list[Part]:
    """Return the parameters that hold numbers, in parts.

    Args:
        rule: what updates them.
        inputs: the parameters in their groups.
        choices: what each group asks for.
        telemetry: whether steps tell how far they move parameters.
    """
    by_kind: dict[PartKind, list[Tensor]] = {}
    for position, (name, param, data) in enumerate(
        zip(inputs.names, inputs.params, inputs.data, strict=True)
    ):
        array = numeric(data)
        if array is None:
            continue  # without a gradient, it may be anything
        group = int(inputs.group_of[position])
        variant, policy = choices[group]
        grad_dtype = storing.gradient_dtype(param, array.dtype)
        storage = storing.storage(rule, policy, array.dtype, grad_dtype)
        used = storage.used(rule, variant)
        tensor = Tensor(position, group, name, param, array, variant, storage, used)
        kind = PartKind(device_of(array), storage, policy.seed, telemetry)
        by_kind.setdefault(kind, []).append(tensor)
    are_named = [not is_positional(group["param_names"]) for group in inputs.groups]
    count = len(inputs.params)
    parts = []
    for kind, tensors in by_kind.items():
        streams = [_stream(tensor, are_named[tensor.group]) for tensor in tensors]
        parts.append(Part(rule, kind, tensors, streams, inputs.groups, count))
    return parts


def _stream(tensor: Tensor, is_named: bool) -> int:
    """Return by which number the random bits of a tensor are told from those of others."""
    number = zlib.crc32(tensor.name.encode()) if is_named else tensor.position
    return (number & 0xFFFFFF) << 8
