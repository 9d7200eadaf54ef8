"""Optimizers."""

from lucid_gpu.optim.adadelta import Adadelta
from lucid_gpu.optim.adafactor import Adafactor
from lucid_gpu.optim.adagrad import Adagrad
from lucid_gpu.optim.adam import Adam, AdamW
from lucid_gpu.optim.adamax import Adamax
from lucid_gpu.optim.adamw_schedule_free import AdamWScheduleFree
from lucid_gpu.optim.adan import Adan
from lucid_gpu.optim.asgd import ASGD
from lucid_gpu.optim.core import chainer, checks, lucid, optax, pytorch
from lucid_gpu.optim.core.array_code import ArrayOptimizer
from lucid_gpu.optim.core.fused import FusedOptimizer
from lucid_gpu.optim.core.hooks import (
    RemovableHandle,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from lucid_gpu.optim.core.optimizer import Optimizer
from lucid_gpu.optim.lamb import LAMB
from lucid_gpu.optim.lars import LARS
from lucid_gpu.optim.lbfgs import LBFGS
from lucid_gpu.optim.lion import Lion
from lucid_gpu.optim.muon import Muon
from lucid_gpu.optim.nadam import NAdam
from lucid_gpu.optim.radam import RAdam
from lucid_gpu.optim.rmsprop import RMSprop
from lucid_gpu.optim.rprop import Rprop
from lucid_gpu.optim.sgd import SGD
from lucid_gpu.optim.sgd_schedule_free import SGDScheduleFree
from lucid_gpu.optim.sparse_adam import SparseAdam
from lucid_gpu.optim.stub import OptimizerStub

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "AdamWScheduleFree",
    "Adamax",
    "Adan",
    "ArrayOptimizer",
    "FusedOptimizer",
    "Lion",
    "Muon",
    "NAdam",
    "Optimizer",
    "OptimizerStub",
    "RAdam",
    "RMSprop",
    "RemovableHandle",
    "Rprop",
    "SGDScheduleFree",
    "SparseAdam",
    "chainer",
    "checks",
    "lucid",
    "optax",
    "pytorch",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
]
