// Sums over one tensor of any strides, whose elements count in C order.
//
// The struct members stand in the same order in lucid_gpu/execution/strided.py.
#pragma once

template <class Rule, typename T, typename P>
struct StridedSums {
  StridedOf<Rule, T, P> tensor;
  Folding folding;  // of what a rule of two phases measures
  Folding watched;  // of what is told
};

// Updates the chunk of a block, whose lanes take their elements in the order of sums.cuh.
template <typename P, typename G, typename... S, class Rule, typename T, int arrays, class Functor>
__device__ __forceinline__ void update_chunk(const StridedTensor<Rule, T, arrays>& tensor,
                                             const Row<Functor, T>& row) {
  const long long start = (long long)(blockIdx.x) * kChunk;
#pragma unroll 1
  for (int i = 0; i < kRounds * kNeighbours; ++i) {
    const long long element =
        start + i / kNeighbours * kRound + int(threadIdx.x) * kNeighbours + i % kNeighbours;
    if (element < tensor.size) update<P, G, S...>(tensor, row, element);
  }
}
