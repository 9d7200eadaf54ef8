"""Schedules of learning rates and of any other number among the options of an optimizer.

A schedule is a pure function ``f(t, base)``; a :class:`Scheduler` counts t and writes what its
schedules give into the groups. The classes whose names end in ``LR`` or ``Scheduler`` are PyTorch's
by name and arguments. docs/schedules.md shows them all.
"""

from lucid_gpu.schedules.compose import (
    chain,
    hold,
    noam,
    sequence,
    warmup_cosine,
    warmup_linear,
    wsd,
)
from lucid_gpu.schedules.cycles import Cosine, CosineRestarts, Cyclic, OneCycle
from lucid_gpu.schedules.functions import (
    Anneal,
    Constant,
    Exponential,
    Lambda,
    Linear,
    Multiplicative,
    MultiStep,
    Polynomial,
    Schedule,
    Step,
)
from lucid_gpu.schedules.pytorch import (
    SWALR,
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    NoamScheduler,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from lucid_gpu.schedules.scheduler import Scheduler

__all__ = [
    "SWALR",
    "Anneal",
    "ChainedScheduler",
    "Constant",
    "ConstantLR",
    "Cosine",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CosineRestarts",
    "Cyclic",
    "CyclicLR",
    "Exponential",
    "ExponentialLR",
    "Lambda",
    "LambdaLR",
    "Linear",
    "LinearLR",
    "MultiStep",
    "MultiStepLR",
    "Multiplicative",
    "MultiplicativeLR",
    "NoamScheduler",
    "OneCycle",
    "OneCycleLR",
    "Polynomial",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "Schedule",
    "Scheduler",
    "SequentialLR",
    "Step",
    "StepLR",
    "chain",
    "hold",
    "noam",
    "sequence",
    "warmup_cosine",
    "warmup_linear",
    "wsd",
]
