// Steps that tell how large parameters are, and how far they move: the squares of both are added up
// in the order of sums.cuh, and folded as other sums are.
#pragma once

// A functor whose lane has the squares of what elements became, and of how far they moved. Both are
// what the functor works on: a master where there is one, and what is not rounded yet.
template <class F, typename T>
struct Watched : F {
  double* lane;
};

template <class F, typename T> constexpr bool kReadsGrad<Watched<F, T>> = kReadsGrad<F>;
template <class F, typename T> constexpr bool kWritesSlots<Watched<F, T>> = kWritesSlots<F>;

template <class F, typename T>
__device__ __forceinline__ void watch(const Watched<F, T>& functor, T before, T after) {
  add_square(functor.lane[0], after);
  add_square(functor.lane[1], T(after - before));
}

template <class F, typename T>
__device__ __forceinline__ Row<Watched<F, T>, T> watched(const Row<F, T>& own, double* lane) {
  return {own.frame, {own.rule, lane}, own.steps};
}

// The phase of a rule that moves parameters, which also tells.
template <class Phase> struct Watching;
template <class Phase> constexpr bool kTells<Watching<Phase>> = true;

template <class Phase>
struct Watching : Phase {
  template <typename T, typename P, typename G, int arrays>
  static __device__ __forceinline__ void run(const Argument<arrays>& argument, const Chunk& chunk,
                                             const Tensor<arrays>& tensor, const void* grad, int row,
                                             T factor) {
    double lane[2] = {};
    const auto own = watched(Phase::template functor<T>(argument, row), lane);
    const auto step = Phase::template at<T, P, G>(own, factor, argument, chunk, tensor, grad);
    in_order(step, chunk.count, step.aligned(0));
    put_sums(lane, argument.watched);
  }
};
