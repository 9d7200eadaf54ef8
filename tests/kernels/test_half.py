"""Numbers of 16 bits: their conversions are those of NumPy and ml_dtypes, for every bit pattern."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest

from lucid_gpu.execution.sources import joined
from tests.emulation.compiler import Compiler

CONVERT = """
extern "C" void convert_{name}(const {name}* from, float* to, int count) {{
  for (int i = 0; i < count; ++i) to[i] = to_float(from[i]);
}}
"""
DTYPES = {"Float16": np.dtype(np.float16), "BFloat16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="module")
def library():
    entries = {name: CONVERT.format(name=name) for name in DTYPES}
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
