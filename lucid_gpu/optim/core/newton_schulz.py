"""The Newton-Schulz iteration that makes a matrix nearly orthogonal."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

DTYPES = ("bfloat16", "float32", "float64")
"""What it may compute in."""


def orthogonalized(
    xp: Any, x: Any, computing: str, coefficients: Sequence[float], steps: int, eps: float
) -> Any:
    """Return a matrix with its singular values brought near to 1, by a Newton-Schulz iteration.

    Args:
        xp: the module of the array.
        x: the matrix.
        computing: the dtype to compute in, one of ``DTYPES``.
        coefficients: c1, c2 and c3.
        steps: the number of iterations.
        eps: the least divisor.
    """
    dtype, is_tall = _dtype(computing), x.shape[0] > x.shape[1]
    x = x.astype(dtype)
    if is_tall:
        x = x.T
    c1, c2, c3 = coefficients
    norm = xp.sqrt(xp.sum(xp.square(_wide(x), dtype=np.float64)))
    norm = _wide(norm.astype(dtype))
    x = (_wide(x) / xp.maximum(norm, eps)).astype(dtype)
    for _ in range(steps):
        gram = _product(xp, x, x.T).astype(dtype)
        factor = (c2 * _wide(gram) + c3 * _product(xp, gram, gram)).astype(dtype)
        x = (c1 * _wide(x) + _product(xp, factor, x)).astype(dtype)
    return x.T if is_tall else x


def _dtype(name: str) -> np.dtype[Any]:
    # On need, so that importing the package is quick.
    scalars = importlib.import_module("ml_dtypes") if name == "bfloat16" else np
    dtype: np.dtype[Any] = np.dtype(getattr(scalars, name))
    return dtype


def _wide(array: Any) -> Any:
    """Return an array of bfloat16 as float32, which holds its sums; any other as it is."""
    return array.astype(np.float32) if array.dtype.itemsize == 2 else array


def _product(xp: Any, a: Any, b: Any) -> Any:
    # NumPy has no BLAS for bfloat16, CuPy has.
    return _wide(a) @ _wide(b) if xp is np else _wide(a @ b)
