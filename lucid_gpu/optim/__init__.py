"""Optimizers."""

from lucid_gpu.optim.adam import Adam, AdamW
from lucid_gpu.optim.fused import FusedOptimizer
from lucid_gpu.optim.hooks import (
    RemovableHandle,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from lucid_gpu.optim.optimizer import Optimizer
from lucid_gpu.optim.sgd import SGD
from lucid_gpu.optim.stub import OptimizerStub

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "FusedOptimizer",
    "Optimizer",
    "OptimizerStub",
    "RemovableHandle",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
]
