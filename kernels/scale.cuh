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

__device__ __forceinline__ void put(float& to, float x) { to = x; }
__device__ __forceinline__ void put(double& to, double x) { to = x; }
__device__ __forceinline__ void put(BFloat16& to, float x) { round_to(to, x); }
__device__ __forceinline__ void put(Float16& to, float x) { round_to(to, x); }

// x·f, in float for 16 bits, as every element is by 1.
template <typename G>
struct Scale {
  decltype(in_registers(G{})) factor;

  __device__ __forceinline__ explicit Scale(double number) : factor(number) {}
  __device__ __forceinline__ bool leaves_all() const { return factor == 1; }
  __device__ __forceinline__ void operator()(G& x) const { put(x, in_registers(x) * factor); }
};

// The nearest number from −bound to bound, and NaN of NaN.
template <typename G>
struct Bound {
  decltype(in_registers(G{})) bound;

  __device__ __forceinline__ explicit Bound(double number) : bound(number) {
    G stored;
    put(stored, bound);
    bound = in_registers(stored);
  }
  __device__ __forceinline__ bool leaves_all() const { return false; }
  __device__ __forceinline__ void operator()(G& x) const {
    put(x, minimum(maximum(in_registers(x), -bound), bound));
  }
};

template <class Change, typename G>
__global__ void __launch_bounds__(kLanes) change(const __grid_constant__ Changed argument) {
  const Chunk chunk = argument.chunks[blockIdx.x];
  void* grad = argument.grads[chunk.tensor];
  const int layout = argument.layouts[chunk.tensor];
  const Change change(argument.factor ? *argument.factor : argument.number);
  if (!grad || change.leaves_all()) return;
  if (layout) {
    const Axes& axes = argument.axes[layout - 1];
#pragma unroll 1
    for (int i = int(threadIdx.x); i < chunk.count; i += kLanes)
      change(*reinterpret_cast<G*>(static_cast<char*>(grad) + axes.offset(chunk.start + i)));
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
    for (int j = 0; j < width; ++j) change(at[j]);
    memcpy(&word, at, sizeof(word));
    __stcg(place, word);
  }
#pragma unroll 1
  for (int i = body + int(threadIdx.x); i < chunk.count; i += kLanes) change(elements[i]);
}
