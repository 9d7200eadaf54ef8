// The floating-point types of 16 bits, as bits: no header of CUDA is needed to read and round them.
#pragma once

#ifndef __CUDACC_RTC__
#include <cstring>
#endif

struct BFloat16 {
  unsigned short bits;
};

struct Float16 {
  unsigned short bits;
};

__device__ __forceinline__ float float_of_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

__device__ __forceinline__ unsigned bits_of_float(float value) {
  unsigned bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

__device__ __forceinline__ float to_float(BFloat16 x) { return float_of_bits(unsigned(x.bits) << 16); }

// Exact on every machine that keeps subnormal numbers: at the place of a float's fraction, the bits
// are 2⁻¹¹² of the number.
__device__ __forceinline__ float to_float(Float16 x) {
  const unsigned magnitude = (x.bits & 0x7FFFu) << 13, sign = (x.bits & 0x8000u) << 16;
  const float finite = float_of_bits(magnitude | sign) * 5.192296858534828e33f;
  return magnitude < 0x0F800000u ? finite : float_of_bits(magnitude | sign | 0x7F800000u);
}

// To the nearest, ties to even. One NaN stands for all.
__device__ __forceinline__ void round_to(BFloat16& x, float value) {
  const unsigned bits = bits_of_float(value);
  x.bits = value != value ? 0x7FFFu : (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
}

__device__ __forceinline__ void round_to(Float16& x, float value) {
  const unsigned all = bits_of_float(value), bits = all & 0x7FFFFFFFu, sign = all >> 16 & 0x8000u;
  const unsigned normal = (bits - 0x38000000u + 0xFFFu + (bits >> 13 & 1)) >> 13;
  // Beside one half, the last place of a float is that of the smallest numbers.
  const unsigned small = bits_of_float(float_of_bits(bits) + 0.5f) - 0x3F000000u;
  const unsigned finite = bits < 0x38800000u ? small : normal;
  const unsigned magnitude = bits >= 0x477FF000u ? 0x7C00u : finite;
  x.bits = value != value ? 0x7FFFu : magnitude | sign;
}
