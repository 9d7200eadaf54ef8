"""Running averages of parameters."""

from lucid_gpu.averages.average import Average

__all__ = ["Average"]
