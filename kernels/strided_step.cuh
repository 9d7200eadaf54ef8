// The same rules for one tensor of any strides: each thread updates one element.
//
// Arrays that can be read 16 bytes at a time go through fused_step.cuh, which this text follows.
// The struct members stand in the same order in lucid_gpu/execution/strided.py.
#pragma once

constexpr int kMaxRank = 32;

struct Strides {
  char* data;                  // the first element
  long long stride[kMaxRank];  // bytes from one element to the next, along each axis
};

template <class Rule, typename T>
struct StridedTensor {
  long long size;
  long long rank;
  long long extent[kMaxRank];
  Strides array[2 + Rule::used];  // parameter, gradient, slots
  Row<Rule, T> row;

  // Sets where element `index` lies in each array. Narrow indices divide several times as fast.
  template <typename Index>
  __device__ __forceinline__ void locate(Index index, char* (&place)[2 + Rule::used]) const {
#pragma unroll
    for (int k = 0; k < 2 + Rule::used; ++k) place[k] = array[k].data;
#pragma unroll 1
    for (int axis = int(rank) - 1; axis >= 0; --axis) {
      const Index rest = axis ? index / Index(extent[axis]) : 0;
      const long long position = index - rest * Index(extent[axis]);
#pragma unroll
      for (int k = 0; k < 2 + Rule::used; ++k) place[k] += position * array[k].stride[axis];
      index = rest;
    }
  }
};

// T computes; P, G and S are what parameter, gradient and slots are stored as.
template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_step(const __grid_constant__ StridedTensor<Rule, T> tensor) {
  const long long index = (long long)(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= tensor.size) return;
  char* place[2 + Rule::used];
  if (tensor.size >> 32)
    tensor.locate(static_cast<unsigned long long>(index), place);
  else
    tensor.locate(static_cast<unsigned>(index), place);

  P& param = *reinterpret_cast<P*>(place[0]);
  T value = T(param), gradient = T(*reinterpret_cast<const G*>(place[1]));
  T state[Rule::slots + 1] = {};
  int k = 0;
  ((state[k] = T(*reinterpret_cast<S*>(place[2 + k])), ++k), ...);
  tensor.row.frame(value, gradient);
  apply(tensor.row.rule, value, gradient, state);
  param = P(value);
  k = 0;
  ((*reinterpret_cast<S*>(place[2 + k]) = S(state[k]), ++k), ...);
}
