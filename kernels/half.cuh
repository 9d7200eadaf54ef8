// The floating-point types of 16 bits, as bits: no header of CUDA is needed to read them.
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

__device__ __forceinline__ float to_float(BFloat16 x) { return float_of_bits(unsigned(x.bits) << 16); }

// Exact on every machine that keeps subnormal numbers: at the place of a float's fraction, the bits
// are 2⁻¹¹² of the number.
__device__ __forceinline__ float to_float(Float16 x) {
  const unsigned magnitude = (x.bits & 0x7FFFu) << 13, sign = (x.bits & 0x8000u) << 16;
  const float finite = float_of_bits(magnitude | sign) * 5.192296858534828e33f;
  return magnitude < 0x0F800000u ? finite : float_of_bits(magnitude | sign | 0x7F800000u);
}
