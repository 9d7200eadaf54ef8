"""Fused GPU optimizers for people who train with CuPy arrays; the same program runs on NumPy."""

from lucid_gpu import device, optim
from lucid_gpu.parameter import Parameter

__all__ = ["Parameter", "__version__", "device", "optim"]

__version__ = "0.1.0"
