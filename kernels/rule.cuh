// What update rules share. Each rule is a functor in a file of its own; README.md has its contract.
#pragma once

enum Decay { kNoDecay, kL2, kDecoupled };

// The larger of two, and NaN if either is: fmax would hide it.
template <typename T>
__device__ __forceinline__ T maximum(T a, T b) {
  return a > b || a != a ? a : b;
}
