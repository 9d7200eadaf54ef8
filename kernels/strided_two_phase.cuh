// The two phases of a rule for one tensor of any strides.
#pragma once

// One block measures one chunk.
template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_measure(const __grid_constant__ StridedSums<Rule, T, P> argument) {
  const auto& tensor = argument.tensor;
  double lane[Rule::sums] = {};
  const Row<First<Rule, T>, T> row{tensor.row.frame, {tensor.row.rule, lane}, tensor.row.steps};
  update_chunk<P, G, S...>(tensor, row);
  put_sums(lane, argument.folding);
}

// What moves the elements, when all of them are measured.
template <class Rule, typename T, typename P>
__device__ __forceinline__ Row<Second<Rule, T>, T> moving(const StridedSums<Rule, T, P>& argument) {
  const auto& row = argument.tensor.row;
  double total[Rule::sums];
  get_totals(total, argument.folding, 0);
  return {row.frame, {row.rule, row.rule.finish(total)}, row.steps};
}

template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_finish(const __grid_constant__ StridedSums<Rule, T, P> argument) {
  const auto& tensor = argument.tensor;
  const long long index = (long long)(blockIdx.x) * kThreads + threadIdx.x;
  if (index >= tensor.size) return;
  update<P, G, S...>(tensor, moving(argument), index);
}
