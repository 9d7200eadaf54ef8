"""Formats of 16 bits: what is read from them, rounded to them, and at random."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lucid_gpu.execution import formats
from lucid_gpu.execution.sources import joined
from tests.emulation.compiler import Compiler

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
SINGLE = np.dtype(np.float32)

PATTERNS = np.concatenate(
    [
        np.random.default_rng(0).integers(0, 2**32, 20_000, np.uint32),
        # Around every number of 16 bits: itself, the ties on both sides, and their neighbours.
        np.add.outer(
            np.arange(2**16, dtype=np.uint32) << 16,
            np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32),
        ).reshape(-1),
        np.arange(0x33000000, 0x33000000 + 5000, dtype=np.uint32),
        np.arange(0x38800000 - 9000, 0x38800000 + 9000, dtype=np.uint32),
        np.arange(0x477FE000, 0x47801000, dtype=np.uint32),
    ]
)
"""Bits of floats: of every kind, and on either side of where rounding changes."""

VALUES = PATTERNS.view(np.float32)


@pytest.mark.parametrize("dtype", formats.HALVES, ids=str)
def test_every_number_of_16_bits_is_read_exactly(dtype):
    numbers = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        expected = numbers.astype(np.float32)
    np.testing.assert_array_equal(formats.widen(numbers), expected)


@pytest.mark.parametrize("dtype", formats.HALVES, ids=str)
def test_rounding_to_nearest_is_that_of_ieee_with_one_nan(dtype):
    with np.errstate(all="ignore"):
        expected = VALUES.astype(dtype).view(np.uint16)
    expected[np.isnan(VALUES)] = formats.ONE_NAN
    np.testing.assert_array_equal(formats.nearest(VALUES, dtype).view(np.uint16), expected)


@pytest.mark.parametrize("dtype", formats.HALVES)
@pytest.mark.parametrize("value", [1.001, np.nan])
def test_a_number_without_dimensions_is_rounded_like_any_other(dtype, value):
    alone = formats.nearest(np.array(value, SINGLE), dtype)
    assert alone.shape == ()
    assert alone.tobytes() == formats.nearest(np.array([value], SINGLE), dtype).tobytes()


def test_a_split_value_is_put_together_again_exactly():
    high, low = formats.split(VALUES)
    expected = PATTERNS.copy()
    expected[np.isnan(VALUES)] = 0x7FC00000
    np.testing.assert_array_equal(formats.join(high, low).view(np.uint32), expected)


def test_the_upper_half_of_a_split_value_is_the_nearest_bfloat16():
    values = VALUES[np.isfinite(VALUES) & (np.abs(VALUES) < 3e38)]
    high, _ = formats.split(values)
    error = np.abs(formats.widen(high).astype(np.float64) - values)
    best = np.abs(values.astype(BFLOAT16).astype(np.float64) - values)
    np.testing.assert_array_equal(error, best)


@given(st.floats(width=32, allow_nan=False), st.integers(0, 2**16 - 1))
def test_a_stochastic_rounding_is_one_of_the_two_neighbours(value, random):
    value = np.float32(value)
    rounded = formats.stochastic(np.array([value]), np.array([random], np.uint16))
    down = (value.view(np.uint32) >> 16).astype(np.uint16)
    neighbours = {int(down)} if not value.view(np.uint32) & 0xFFFF else {int(down), int(down) + 1}
    assert int(rounded.view(np.uint16)[0]) in neighbours


def test_the_mean_of_all_stochastic_roundings_is_the_value():
    value = np.float32(1 + 2**-12 + 2**-20)
    every = np.arange(2**16, dtype=np.uint16)
    rounded = formats.stochastic(np.full(2**16, value), every)
    assert rounded.astype(np.float64).mean() == float(value)


def test_what_is_not_finite_is_not_rounded_at_random():
    values = np.array([np.inf, -np.inf, np.nan], np.float32)
    rounded = formats.stochastic(values, np.full(3, 0xFFFF, np.uint16)).view(np.uint16)
    assert rounded.tolist() == [0x7F80, 0xFF80, formats.ONE_NAN]


@pytest.mark.parametrize(
    ("seed", "block", "steps", "stream", "words"),
    [
        (0, 0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (2**64 - 1, -1, 2**32 - 1, 2**32 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            0x299F31D0A4093822, 0x85A308D3243F6A88 - 2**64, 0x13198A2E, 0x03707344,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)  # fmt: skip
def test_philox_gives_the_published_vectors(seed, block, steps, stream, words):
    (drawn,) = formats.philox(seed, np.array([block]), steps, stream)
    assert " ".join(f"{int(word):08x}" for word in drawn) == words


@given(st.integers(0, 1000), st.integers(0, 100), st.integers(0, 2**32 - 1))
def test_the_random_bits_of_an_element_do_not_depend_on_its_company(start, count, steps):
    own = formats.random_bits(7, steps, 256, np.arange(start, start + count))
    whole = formats.random_bits(7, steps, 256, np.arange(1200))
    scattered = formats.random_bits(7, steps, 256, np.array([0, 10**6, start, 3]))
    np.testing.assert_array_equal(own, whole[start : start + count])
    assert scattered[2] == whole[start]


def test_seed_step_and_stream_each_change_the_random_bits():
    elements = np.arange(64)
    seen = {
        formats.random_bits(*arguments, elements).tobytes()
        for arguments in [(0, 0, 0), (1, 0, 0), (1 << 32, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(seen) == 5


TWINS = """
extern "C" void twins(const unsigned* bits, long long count, unsigned short* bfloat16,
                      unsigned short* float16, unsigned short* high, short* low, unsigned* joined,
                      unsigned short* stochastic, const unsigned short* random) {
  for (long long i = 0; i < count; ++i) {
    const float value = float_of_bits(bits[i]);
    BFloat16 b; Float16 h; Rounded<3> r;
    round_to(b, value); round_to(h, value); round_to(r, value, random[i]);
    bfloat16[i] = b.bits; float16[i] = h.bits; stochastic[i] = r.bits;
    split(value, high[i], low[i]);
    joined[i] = bits_of_float(join(high[i], low[i]));
  }
}
extern "C" void read(unsigned short bits, float* values) {
  values[0] = to_float(BFloat16{bits});
  values[1] = to_float(Float16{bits});
}
extern "C" void draw(unsigned long long key, unsigned steps, unsigned stream, long long count,
                     unsigned short* bits) {
  const Randomness randomness{key, steps, stream};
  for (long long i = 0; i < count; ++i) bits[i] = randomness.bits(i, 2);
}
"""


@pytest.fixture(scope="module")
def kernels():
    """The functions of the kernels, built for the host."""
    text = joined("half", "stored")
    return ctypes.CDLL(str(Compiler().library(text, {"twins": TWINS})))


def test_the_kernels_round_as_numpy_does(kernels):
    count = len(PATTERNS)
    random = np.random.default_rng(1).integers(0, 2**16, count).astype(np.uint16)
    made = [np.empty(count, dtype) for dtype in ("u2", "u2", "u2", "i2", "u4", "u2")]
    kernels.twins(
        *(ctypes.c_void_p(array.ctypes.data) for array in [PATTERNS]),
        ctypes.c_longlong(count),
        *(ctypes.c_void_p(array.ctypes.data) for array in (*made, random)),
    )
    high, low = formats.split(VALUES)
    expected = [
        formats.nearest(VALUES, BFLOAT16).view(np.uint16),
        formats.nearest(VALUES, np.dtype(np.float16)).view(np.uint16),
        high.view(np.uint16),
        low,
        formats.join(high, low).view(np.uint32),
        formats.stochastic(VALUES, random).view(np.uint16),
    ]
    for ours, theirs in zip(made, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_kernels_read_as_numpy_does(kernels):
    seen = np.empty((2**16, 2), np.float32)
    for number in range(2**16):
        place = ctypes.c_void_p(seen[number].ctypes.data)
        kernels.read(ctypes.c_ushort(number), place)
    numbers = np.arange(2**16, dtype=np.uint16)
    for column, dtype in enumerate(formats.HALVES):
        np.testing.assert_array_equal(seen[:, column], formats.widen(numbers.view(dtype)))


def test_the_kernels_draw_as_numpy_does(kernels):
    bits = np.empty(100, np.uint16)
    place = ctypes.c_void_p(bits.ctypes.data)
    kernels.draw(ctypes.c_ulonglong(2**40 + 5), 9, 512, ctypes.c_longlong(100), place)
    expected = formats.random_bits(2**40 + 5, 9, 512 + 2, np.arange(100))
    np.testing.assert_array_equal(bits, expected)
