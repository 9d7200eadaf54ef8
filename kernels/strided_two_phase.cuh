// The two phases of a rule for one tensor of any strides, whose elements count in C order.
//
// The struct members stand in the same order in lucid_gpu/execution/strided.py.
#pragma once

template <class Rule, typename T, typename P>
struct StridedSums {
  StridedOf<Rule, T, P> tensor;
  Folding folding;
};

// One block measures one chunk.
template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_measure(const __grid_constant__ StridedSums<Rule, T, P> argument) {
  const auto& tensor = argument.tensor;
  const long long start = (long long)(blockIdx.x) * kChunk;
  double lane[Rule::sums] = {};
  const Row<First<Rule, T>, T> row{tensor.row.frame, {tensor.row.rule, lane}, tensor.row.steps};
#pragma unroll 1
  for (int i = 0; i < kRounds * kNeighbours; ++i) {
    const long long element =
        start + i / kNeighbours * kRound + int(threadIdx.x) * kNeighbours + i % kNeighbours;
    if (element < tensor.size) update<P, G, S...>(tensor, row, element);
  }
  put_sums(lane, argument.folding);
}

template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_finish(const __grid_constant__ StridedSums<Rule, T, P> argument) {
  const auto& tensor = argument.tensor;
  const long long index = (long long)(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= tensor.size) return;
  double total[Rule::sums];
  get_totals(total, argument.folding, 0);
  const T size = tensor.row.rule.finish(total);
  const Row<Second<Rule, T>, T> row{tensor.row.frame, {tensor.row.rule, size}, tensor.row.steps};
  update<P, G, S...>(tensor, row, index);
}
