// Canonical sums of squares: what the GPU's and the CPU's have in common.
//
// In a chunk of 4096, element e goes to lane (e / 4) mod 256. A lane adds in rising e, and the lanes
// are folded as a tree: 128, 64, … 1. Results further up go to lane (i mod 256) of the same tree. So
// neither alignment nor layout, blocks nor threads change a bit; these numbers are a part of it.
#pragma once

constexpr int kLanes = 256;
constexpr int kNeighbours = 4;               // elements that a lane takes at a time
constexpr int kRound = kLanes * kNeighbours;  // elements that all of them do
constexpr int kRounds = 4;
constexpr int kChunk = kRounds * kRound;
constexpr int kAxes = 64;

__device__ __forceinline__ float in_registers(float x) { return x; }
__device__ __forceinline__ double in_registers(double x) { return x; }
__device__ __forceinline__ float in_registers(BFloat16 x) { return to_float(x); }
__device__ __forceinline__ float in_registers(Float16 x) { return to_float(x); }

// How a tensor that is not contiguous in C order is walked in that order.
struct Axes {
  long long rank;
  long long extent[kAxes];
  long long stride[kAxes];  // in bytes

  __device__ __forceinline__ long long offset(long long element) const {
    long long place = 0;
    for (int axis = int(rank) - 1; axis >= 0; --axis) {
      const long long rest = axis ? element / extent[axis] : 0;
      place += (element - rest * extent[axis]) * stride[axis];
      element = rest;
    }
    return place;
  }
};
