"""Numbers of 16 bits: their conversions are those of NumPy and ml_dtypes, for every bit pattern."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu.execution.sources import joined
from tests.emulation.compiler import Compiler

CODE = """
extern "C" void convert_{name}(const {name}* from, float* to, int count) {{
  for (int i = 0; i < count; ++i) to[i] = to_float(from[i]);
}}
extern "C" void round_{name}(const float* from, {name}* to, int count) {{
  for (int i = 0; i < count; ++i) round_to(to[i], from[i]);
}}
"""
DTYPES = {"Float16": np.dtype(np.float16), "BFloat16": np.dtype(ml_dtypes.bfloat16)}


def floats(dtype, rng):
    """Floats of any bits, and those at, beside and between the numbers of a dtype."""
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        exact = every.astype(np.float32).view(np.uint32)
    between = exact + np.uint32(1 << (11 if dtype == np.float16 else 14))
    middle = exact + np.uint32(1 << (12 if dtype == np.float16 else 15))
    anything = rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint32)
    near = [near + np.uint32(step) for near in (exact, middle) for step in (0, 1, 2**32 - 1)]
    return np.concatenate([*near, between, anything]).view(np.float32)


@pytest.fixture(scope="module")
def library():
    entries = {name: CODE.format(name=name) for name in DTYPES}
    return ctypes.CDLL(str(Compiler().library(joined("half"), entries)))


@pytest.mark.parametrize("name", DTYPES)
def test_every_number_is_converted_exactly(name, library):
    stored = np.arange(1 << 16, dtype=np.uint16)
    converted = np.empty(1 << 16, np.float32)
    function = getattr(library, f"convert_{name}")
    pointers = map(ctypes.c_void_p, (stored.ctypes.data, converted.ctypes.data))
    function(*pointers, stored.size)
    with np.errstate(invalid="ignore"):
        expected = stored.view(DTYPES[name]).astype(np.float32)
    are_numbers = ~np.isnan(expected)
    assert are_numbers.tolist() == (~np.isnan(converted)).tolist()
    assert (converted.view("u4") == expected.view("u4"))[are_numbers].all()


@pytest.mark.parametrize("name", DTYPES)
def test_every_number_is_rounded_to_the_nearest_and_every_nan_to_one(name, library, rng):
    given = floats(DTYPES[name], rng)
    rounded = np.empty(given.size, np.uint16)
    pointers = map(ctypes.c_void_p, (given.ctypes.data, rounded.ctypes.data))
    getattr(library, f"round_{name}")(*pointers, given.size)
    with np.errstate(all="ignore"):
        expected = given.astype(DTYPES[name]).view(np.uint16)
    expected[np.isnan(given)] = 0x7FFF
    np.testing.assert_array_equal(rounded, expected)
