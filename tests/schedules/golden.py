"""Rates that PyTorch 2.13 gave for t = 0 … 9, with base 0.1 and SGD(momentum=0.9)."""

from __future__ import annotations

from lucid_gpu import Parameter
from lucid_gpu.optim import SGD


def halving(t):
    return 0.5**t


def decaying(t):
    return 0.95**t


def alternating(t):
    return 0.95 + 0.01 * (t % 2)


SCHEDULERS = {
    "LambdaLR": lambda s, o: s.LambdaLR(o, decaying),
    "MultiplicativeLR": lambda s, o: s.MultiplicativeLR(o, alternating),
    "StepLR": lambda s, o: s.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda s, o: s.MultiStepLR(o, [5, 2, 5, 8], 0.5),
    "ConstantLR": lambda s, o: s.ConstantLR(o, 0.5, 4),
    "LinearLR": lambda s, o: s.LinearLR(o, 0.25, 1, 5),
    "ExponentialLR": lambda s, o: s.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda s, o: s.PolynomialLR(o, 6, 2),
    "CosineAnnealingLR": lambda s, o: s.CosineAnnealingLR(o, 6, 0.01),
    "CosineAnnealingWarmRestarts": lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.01),
    "CyclicLR triangular": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 3, 2),
    "CyclicLR triangular2": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 2, 2, "triangular2"),
    "CyclicLR exp_range": lambda s, o: s.CyclicLR(o, 0.01, 0.1, 3, 2, "exp_range", 0.9),
    "OneCycleLR": lambda s, o: s.OneCycleLR(o, 0.1, 10),
    "OneCycleLR linear, three phases": lambda s, o: s.OneCycleLR(
        o, 0.1, 10, anneal_strategy="linear", three_phase=True
    ),
    "SequentialLR of two": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.1, 1, 3), s.CosineAnnealingLR(o, 6)], [3]
    ),
    "SequentialLR of three": lambda s, o: s.SequentialLR(
        o, [s.ConstantLR(o, 0.1, 2), s.ExponentialLR(o, 0.9), s.StepLR(o, 2, 0.5)], [2, 5]
    ),
    "ChainedScheduler": lambda s, o: s.ChainedScheduler(
        [s.ConstantLR(o, 0.5, 3), s.ExponentialLR(o, 0.9)]
    ),
    "ChainedScheduler with a cosine": lambda s, o: s.ChainedScheduler(
        [s.LinearLR(o, 0.25, 1, 3), s.CosineAnnealingLR(o, 8)]
    ),
    "SWALR": lambda s, o: s.SWALR(o, 0.02, 4, "cos"),
}
"""How to make each, of a namespace ``s`` with the classes, for an optimizer ``o``."""

OURS_ALONE = {"NoamScheduler": lambda s, o: s.NoamScheduler(o, 512, 4)}
"""Lucid has it, PyTorch does not."""

LR = {
    "LambdaLR": (
        "0.1, 0.095, 0.09025, 0.0857375, 0.081450625, 0.0773780937, 0.0735091891, 0.0698337296, "
        "0.0663420431, 0.063024941"
    ),
    "MultiplicativeLR": (
        "0.1, 0.096, 0.0912, 0.087552, 0.0831744, 0.079847424, 0.0758550528, 0.0728208507, "
        "0.0691798082, 0.0664126158"
    ),
    "StepLR": "0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.0125",
    "MultiStepLR": "0.1, 0.1, 0.05, 0.05, 0.05, 0.0125, 0.0125, 0.0125, 0.00625, 0.00625",
    "ConstantLR": "0.05, 0.05, 0.05, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1",
    "LinearLR": "0.025, 0.04, 0.055, 0.07, 0.085, 0.1, 0.1, 0.1, 0.1, 0.1",
    "ExponentialLR": (
        "0.1, 0.09, 0.081, 0.0729, 0.06561, 0.059049, 0.0531441, 0.04782969, 0.043046721, "
        "0.0387420489"
    ),
    "PolynomialLR": (
        "0.1, 0.0694444444, 0.0444444444, 0.025, 0.0111111111, 0.00277777778, 0, 0, 0, 0"
    ),
    "CosineAnnealingLR": (
        "0.1, 0.0939711432, 0.0775, 0.055, 0.0325, 0.0160288568, 0.01, 0.0160288568, 0.0325, 0.055"
    ),
    "CosineAnnealingWarmRestarts": (
        "0.1, 0.0775, 0.0325, 0.1, 0.0939711432, 0.0775, 0.055, 0.0325, 0.0160288568, 0.1"
    ),
    "CyclicLR triangular": "0.01, 0.04, 0.07, 0.1, 0.055, 0.01, 0.04, 0.07, 0.1, 0.055",
    "CyclicLR triangular2": ("0.01, 0.055, 0.1, 0.055, 0.01, 0.0325, 0.055, 0.0325, 0.01, 0.02125"),
    "CyclicLR exp_range": (
        "0.01, 0.037, 0.0586, 0.07561, 0.0395245, 0.01, 0.02594323, 0.038697814, 0.0487420489, "
        "0.027433922"
    ),
    "OneCycleLR": (
        "0.004, 0.052, 0.1, 0.0950484632, 0.0811745654, 0.0611262022, 0.0388741978, 0.0188258346, "
        "0.0049519368, 4e-07"
    ),
    "OneCycleLR linear, three phases": (
        "0.004, 0.052, 0.1, 0.052, 0.004, 0.00320008, 0.00240016, 0.00160024, 0.00080032, 4e-07"
    ),
    "SequentialLR of two": (
        "0.01, 0.04, 0.07, 0.1, 0.0933012702, 0.075, 0.05, 0.025, 0.00669872981, 0"
    ),
    "SequentialLR of three": "0.01, 0.01, 0.1, 0.09, 0.081, 0.1, 0.1, 0.05, 0.05, 0.025",
    "ChainedScheduler": (
        "0.05, 0.045, 0.0405, 0.0729, 0.06561, 0.059049, 0.0531441, 0.04782969, 0.043046721, "
        "0.0387420489"
    ),
    "ChainedScheduler with a cosine": (
        "0.025, 0.0480969883, 0.0640165043, 0.0691341716, 0.05, 0.0308658284, 0.0146446609, "
        "0.00380602337, 0, 0.00380602337"
    ),
    "SWALR": "0.1, 0.0882842712, 0.06, 0.0317157288, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02",
    "NoamScheduler": (
        "0.00552427173, 0.00552427173, 0.0110485435, 0.0165728152, 0.0220970869, 0.0197642354, "
        "0.0180421959, 0.0167038276, 0.015625, 0.0147313913"
    ),
}

MOMENTUM = {
    "CyclicLR triangular": (
        "0.9, 0.866666667, 0.833333333, 0.8, 0.85, 0.9, 0.866666667, 0.833333333, 0.8, 0.85"
    ),
    "OneCycleLR": (
        "0.95, 0.9, 0.85, 0.854951557, 0.86882551, 0.888873953, 0.911126047, 0.93117449, "
        "0.945048443, 0.95"
    ),
}

PLATEAU = {
    "halving": (
        {"factor": 0.5, "patience": 1, "threshold": 0.1, "cooldown": 1},
        [10, 9.5, 9.4, 9.3, 8, 8, 8, 8, 8, 7],
        [0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.025],
        [0, 1, 0, 0, 0, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    ),
    "of NaN": (
        {"patience": 1},
        [1, float("nan"), float("nan"), float("nan")],
        [0.1, 0.1, 0.01, 0.01],
        [0, 1, 0, 1],
        [0, 0, 0, 0],
    ),
}
"""Arguments and metrics; and after each the rate, the bad steps and the cooldown."""


def numbers(text):
    return [float(number) for number in text.split(", ")]


def sgd(lr=0.1, momentum=0.9, groups=1):
    """An optimizer to schedule."""
    return SGD(
        [{"params": [Parameter([1.0])], "lr": lr / (1 + i)} for i in range(groups)],
        momentum=momentum,
    )
