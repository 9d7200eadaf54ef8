"""Utilities for gradients: clipping, accumulation, and where numbers stopped being finite.

What is done to gradients ahead of a step has an order: accumulate, add up over devices, unscale,
clip, step, schedule, average, zero.

Functions with the names of ``torch.nn.utils`` take the same arguments and give the same numbers,
but for this: a 2-norm is added up in float64, in the order of :mod:`lucid_gpu.execution.sums`, so
that it is the same to the bit on a GPU and on the CPU, however many threads or launches there are.
Where gradients are on several devices, their sums go to that of the first. Otherwise no function
waits for a GPU unless it says so. None can be recorded in a CUDA graph.
"""

from lucid_gpu.gradients.accumulating import accumulate
from lucid_gpu.gradients.clipping import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from lucid_gpu.gradients.nonfinite import nonfinite_gradients

__all__ = [
    "accumulate",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "get_total_norm",
    "nonfinite_gradients",
]
