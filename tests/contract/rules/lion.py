"""Lion, evolved sign momentum: Chen et al. 2023."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from lucid_gpu.optim import FusedOptimizer
from lucid_gpu.optim.core import checks


class Lion(FusedOptimizer):
    """The sign of an interpolated momentum, with decoupled weight decay."""

    kernel = Path(__file__).with_name("lion.cuh")
    functor = "Lion"
    slots = ("exp_avg",)
    scratch = 2
    decay = "decoupled"

    class Scalars(NamedTuple):
        """Constants of one step."""

        beta1: float
        c1: float
        beta2: float
        c2: float
        lr: float

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    def check_options(self, options):
        checks.nonnegative(options, "lr", "weight_decay")
        checks.decay_rates(options, "betas", 2)

    @staticmethod
    def used_slots(variant):
        return Lion.slots

    @staticmethod
    def scalars(options, t):
        lr, (beta1, beta2) = options["lr"], options["betas"]
        return Lion.Scalars(beta1, 1 - beta1, beta2, 1 - beta2, lr)

    @staticmethod
    def update(k, variant, /, param, g, m, a, b):
        np.multiply(k.beta1, m, out=a)
        np.multiply(k.c1, g, out=b)
        a += b
        np.sign(a, out=a)
        a *= k.lr
        param -= a
        m *= k.beta2
        np.multiply(k.c2, g, out=b)
        m += b
