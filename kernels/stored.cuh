// What arrays are stored as where that is less than what computes, and how values get there.
#pragma once

// A bfloat16 that is rounded stochastically. The number tells arrays of one parameter apart.
template <int number>
struct Rounded {
  unsigned short bits;
};

template <typename S> constexpr bool kIsRounded = false;
template <int number> constexpr bool kIsRounded<Rounded<number>> = true;

// A parameter of 16 bits whose exact value is kept as a float beside it.
template <typename H>
struct Mastered {};

// A bfloat16 parameter and the 16 bits that its exact value has beyond it.
struct Split {};

// What lies in the array of a parameter, and in the one beside it.
template <typename P> struct Elements { using type = P; static constexpr int beside = 0; };
template <typename H> struct Elements<Mastered<H>> { using type = H; static constexpr int beside = 4; };
template <> struct Elements<Split> { using type = unsigned short; static constexpr int beside = 2; };

__device__ __forceinline__ float to_float(float x) { return x; }

template <typename T> __device__ __forceinline__ T value_of(float x) { return T(x); }
template <typename T> __device__ __forceinline__ T value_of(double x) { return T(x); }
template <typename T> __device__ __forceinline__ T value_of(BFloat16 x) { return T(to_float(x)); }
template <typename T> __device__ __forceinline__ T value_of(Float16 x) { return T(to_float(x)); }
template <typename T, int number> __device__ __forceinline__ T value_of(Rounded<number> x) {
  return T(to_float(BFloat16{x.bits}));
}

// Philox4x32-10 of Salmon et al. 2011: what it returns depends on nothing but its arguments.
struct Draw {
  unsigned word[4];
};

__device__ __forceinline__ Draw philox(unsigned long long key, unsigned long long block,
                                       unsigned step, unsigned stream) {
  unsigned c0 = unsigned(block), c1 = unsigned(block >> 32), c2 = step, c3 = stream;
  unsigned k0 = unsigned(key), k1 = unsigned(key >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long p0 = 0xD2511F53ull * c0, p1 = 0xCD9E8D57ull * c2;
    c0 = unsigned(p1 >> 32) ^ c1 ^ k0;
    c2 = unsigned(p0 >> 32) ^ c3 ^ k1;
    c1 = unsigned(p1);
    c3 = unsigned(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Draw{{c0, c1, c2, c3}};
}

// Where the random bits of a tensor in a step come from.
struct Randomness {
  unsigned long long key;
  unsigned step, stream;

  __device__ __forceinline__ Draw draw(long long block, int number) const {
    return philox(key, block, step, stream + number);
  }

  // The 16 bits of an element: eight elements share a draw.
  __device__ __forceinline__ unsigned bits(long long element, int number) const {
    const Draw drawn = draw(element >> 3, number);
    const unsigned low = element & 2 ? drawn.word[1] : drawn.word[0];
    const unsigned high = element & 2 ? drawn.word[3] : drawn.word[2];
    return (element & 4 ? high : low) >> (element & 1 ? 16 : 0) & 0xFFFFu;
  }
};

// Up or down at random, the nearer one more often. What is not finite stays.
template <int number>
__device__ __forceinline__ void round_to(Rounded<number>& x, float value, unsigned random) {
  const unsigned bits = bits_of_float(value);
  const unsigned rounded = (bits & 0x7F800000u) == 0x7F800000u ? bits : bits + random;
  x.bits = value != value ? 0x7FFFu : rounded >> 16;
}

// To the nearest, ties away from zero: so that what is left always fits 16 bits.
__device__ __forceinline__ void split(float value, unsigned short& high, short& low) {
  const unsigned bits = value != value ? 0x7FC00000u : bits_of_float(value);
  high = (bits + 0x8000u) >> 16;
  low = short(bits & 0xFFFFu);
}

__device__ __forceinline__ float join(unsigned short high, short low) {
  return float_of_bits((unsigned(high) << 16) + unsigned(int(low)));
}
