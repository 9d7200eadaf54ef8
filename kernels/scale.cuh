// Gradients scaled or bounded in place, on a GPU: one block changes one chunk. They stay in L2, where
// the step will find them.
//
// The struct members stand in the same order in lucid_gpu/execution/cuda_sums.py.
#pragma once

struct Changed {
  const Chunk* chunks;
  void* const* grads;
  const int* layouts;
  const Axes* axes;
  const double* factor;  // where the number lies, or null
  double number;
};

// x·f, as every element is by 1.
struct Scale {
  template <typename G>
  static __device__ __forceinline__ bool leaves_all(G factor) {
    return factor == 1;
  }
  template <typename G>
  static __device__ __forceinline__ G of(G x, G factor) {
    return x * factor;
  }
};

// The nearest number from −bound to bound, and NaN of NaN.
struct Bound {
  template <typename G>
  static __device__ __forceinline__ bool leaves_all(G) {
    return false;
  }
  template <typename G>
  static __device__ __forceinline__ G of(G x, G bound) {
    return minimum(maximum(x, -bound), bound);
  }
};

template <class Change, typename G>
__global__ void __launch_bounds__(kLanes) change(const __grid_constant__ Changed argument) {
  const Chunk chunk = argument.chunks[blockIdx.x];
  void* grad = argument.grads[chunk.tensor];
  const int layout = argument.layouts[chunk.tensor];
  const G number = G(argument.factor ? *argument.factor : argument.number);
  if (!grad || Change::leaves_all(number)) return;
  if (layout) {
    const Axes& axes = argument.axes[layout - 1];
#pragma unroll 1
    for (int i = int(threadIdx.x); i < chunk.count; i += kLanes) {
      G& element = *reinterpret_cast<G*>(static_cast<char*>(grad) + axes.offset(chunk.start + i));
      element = Change::of(element, number);
    }
    return;
  }
  constexpr int width = 16 / sizeof(G);
  G* const elements = static_cast<G*>(grad) + chunk.start;
  const bool aligned = reinterpret_cast<unsigned long long>(elements) % 16 == 0;
  const int body = aligned ? chunk.count / width * width : 0;
#pragma unroll 1
  for (int i = int(threadIdx.x) * width; i < body; i += kLanes * width) {
    uint4* const place = reinterpret_cast<uint4*>(elements + i);
    uint4 word = __ldcg(place);
    G at[width];
    memcpy(at, &word, sizeof(word));
#pragma unroll
    for (int j = 0; j < width; ++j) at[j] = Change::of(at[j], number);
    memcpy(&word, at, sizeof(word));
    __stcg(place, word);
  }
#pragma unroll 1
  for (int i = body + int(threadIdx.x); i < chunk.count; i += kLanes)
    elements[i] = Change::of(elements[i], number);
}
