"""The Newton-Schulz iteration against the singular value decomposition."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_gpu.optim.core.newton_schulz import DTYPES, orthogonalized

CUBIC = (1.5, -0.5, 0.0)
"""Coefficients with which it converges."""

ERRORS = {"bfloat16": 0.03, "float32": 1e-5, "float64": 1e-13}


@pytest.mark.parametrize("computing", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
def test_it_finds_the_nearest_orthogonal_matrix(shape, computing):
    matrix = np.random.default_rng(0).normal(size=shape)
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    found = orthogonalized(np, matrix, computing, CUBIC, 40, 1e-7)
    assert found.dtype.name == computing
    np.testing.assert_allclose(found.astype(np.float64), u @ vt, atol=ERRORS[computing])


def test_a_matrix_of_zeros_stays_zero():
    assert not orthogonalized(np, np.zeros((2, 3)), "float64", CUBIC, 5, 1e-7).any()
