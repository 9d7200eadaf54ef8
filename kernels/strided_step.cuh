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

template <class Rule, typename T, int arrays>
struct StridedTensor {
  long long size;
  long long rank;
  long long extent[kMaxRank];
  unsigned long long seed;
  unsigned long long stream;
  const Outcome* outcome;
  Strides array[arrays];  // parameter, gradient, slots, and what lies beside the parameter
  Row<Rule, T> row;

  // Sets where element `index` lies in each array. Narrow indices divide several times as fast.
  template <typename Index>
  __device__ __forceinline__ void locate(Index index, char* (&place)[arrays]) const {
#pragma unroll
    for (int k = 0; k < arrays; ++k) place[k] = array[k].data;
#pragma unroll 1
    for (int axis = int(rank) - 1; axis >= 0; --axis) {
      const Index rest = axis ? index / Index(extent[axis]) : 0;
      const long long position = index - rest * Index(extent[axis]);
#pragma unroll
      for (int k = 0; k < arrays; ++k) place[k] += position * array[k].stride[axis];
      index = rest;
    }
  }
};

// Updates an element by the functor of a row.
template <typename P, typename G, typename... S, class Rule, typename T, int arrays, class Functor>
__device__ __forceinline__ void update(const StridedTensor<Rule, T, arrays>& tensor,
                                       const Row<Functor, T>& row, long long index) {
  T factor = 1;
  if (tensor.outcome) {
    if (tensor.outcome->skipped) return;
    factor = tensor.outcome->template factor_of<T>();
  }
  char* place[arrays];
  if (tensor.size >> 32)
    tensor.locate(static_cast<unsigned long long>(index), place);
  else
    tensor.locate(static_cast<unsigned>(index), place);

  using Element = typename Elements<P>::type;
  const Randomness randomness{tensor.seed, row.count(), unsigned(tensor.stream)};
  Param<1, P> param;
  Slots<1, S...> slots = {};
  void* slot[Rule::slots + 2] = {};
#pragma unroll
  for (int k = 2; k < arrays; ++k) slot[k - 2] = place[k];
  Element* const stored = reinterpret_cast<Element*>(place[0]);
  param.load_from(stored, slot[Rule::used], 0, 0, randomness, index);
  if constexpr (kReadsSlots<Functor>) slots.load_from(slot, 0, 0, randomness, index);
  T value = param.template get<T>(0), gradient = value_of<T>(*reinterpret_cast<const G*>(place[1]));
  T state[Rule::slots + 1] = {};
  slots.get(state, 0);
  const T before = value;
  gradient = gradient * factor;
  row.frame(value, gradient);
  apply(row.rule, value, gradient, state);
  watch(row.rule, before, value);
  param.put(0, value);
  slots.put(state, 0);
  if constexpr (kWritesParam<Functor>) param.store_to(stored, slot[Rule::used], 0, 0);
  if constexpr (kWritesSlots<Functor>) slots.store_to(slot, 0, 0);
}

// What a kernel is called with for a tensor whose parameter is stored as P.
template <class Rule, typename T, typename P>
using StridedOf = StridedTensor<Rule, T, 2 + Rule::used + (Elements<P>::beside != 0)>;

// T computes; P, G and S are what parameter, gradient and slots are stored as.
template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_step(const __grid_constant__ StridedOf<Rule, T, P> tensor) {
  const long long index = (long long)(blockIdx.x) * kThreads + threadIdx.x;
  if (index < tensor.size) update<P, G, S...>(tensor, tensor.row, index);
}
