"""Fused GPU optimizers for people who train with CuPy arrays; the same program runs on NumPy."""

import lucid_gpu.command.startup  # first: see there  # noqa: F401
from lucid_gpu import amp, averages, gradients, optim, schedules
from lucid_gpu.execution.cpu_code import cpu_code, set_cpu_code
from lucid_gpu.flatten import FlatParameter, flatten
from lucid_gpu.parameter import Parameter
from lucid_gpu.row_gradient import RowGradient

__all__ = [
    "FlatParameter",
    "Parameter",
    "RowGradient",
    "__version__",
    "amp",
    "averages",
    "cpu_code",
    "device",
    "flatten",
    "gradients",
    "optim",
    "schedules",
    "set_cpu_code",
]

__version__ = "0.1.0"
