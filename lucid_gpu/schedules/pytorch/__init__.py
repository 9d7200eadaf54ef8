"""PyTorch's learning-rate schedulers by their names and arguments.

Each builds a schedule and is a :class:`~lucid_gpu.schedules.Scheduler`, with all that it offers.
``last_epoch`` and ``every`` mean the same in all, and are documented there. Where an argument may
be a list, it has one value for each parameter group.
"""

from lucid_gpu.schedules.pytorch.composed import ChainedScheduler, SequentialLR
from lucid_gpu.schedules.pytorch.cyclic import CyclicLR, OneCycleLR
from lucid_gpu.schedules.pytorch.plateau import ReduceLROnPlateau
from lucid_gpu.schedules.pytorch.simple import (
    SWALR,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    NoamScheduler,
    PolynomialLR,
    StepLR,
)

__all__ = [
    "SWALR",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "NoamScheduler",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
