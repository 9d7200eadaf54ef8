// Steps of one tensor of any strides that tell.
#pragma once

// What moves the elements by a rule of one phase; strided_two_phase.cuh has that of two, which goes
// before this one, as it has no pack.
template <class Rule, typename T, typename P, class... None>
__device__ __forceinline__ const Row<Rule, T>& moving(const StridedSums<Rule, T, P>& argument,
                                                      const None&...) {
  return argument.tensor.row;
}

// One block steps one chunk.
template <typename T, typename P, typename G, class Rule, typename... S>
__global__ void __launch_bounds__(kThreads)
    strided_watch(const __grid_constant__ StridedSums<Rule, T, P> argument) {
  double lane[2] = {};
  update_chunk<P, G, S...>(argument.tensor, watched(moving(argument), lane));
  put_sums(lane, argument.watched);
}
