// Rules of two phases: the first measures each tensor, the second moves it by what came out.
//
// The last block of a tensor folds its sums, in the order of sums.cuh. `slots_move_first` of a functor
// says which phase changes the slots: the first, whose `measure` reads the gradient, and the
// second reads no gradient; or the second, and the first reads no slots.
#pragma once

template <class R, typename T>
struct First : R {
  double* lane;

  template <typename... S>
  __device__ __forceinline__ void operator()(T& param, T g, S&... slot) const {
    T measured[R::sums];
    R::measure(param, g, slot..., measured);
#pragma unroll
    for (int k = 0; k < R::sums; ++k) {
      const double x = measured[k];
      if constexpr (sizeof(T) == sizeof(double))
        lane[k] += x * x;
      else  // exact, whether rounded once or twice: the square of a float fits a double
        lane[k] = __fma_rn(x, x, lane[k]);
    }
  }
};

template <class R, typename T>
struct Second : R {
  T size;

  template <typename... S>
  __device__ __forceinline__ void operator()(T& param, T g, S&... slot) const {
    R::update(param, g, slot..., size);
  }
};

template <class R, typename T> constexpr bool kWritesParam<First<R, T>> = false;
template <class R, typename T> constexpr bool kReadsSlots<First<R, T>> = R::slots_move_first;
template <class R, typename T> constexpr bool kWritesSlots<First<R, T>> = R::slots_move_first;
template <class R, typename T> constexpr bool kReadsGrad<Second<R, T>> = !R::slots_move_first;
template <class R, typename T> constexpr bool kWritesSlots<Second<R, T>> = !R::slots_move_first;

// Folds what the lanes of a block have of each kind: to the sums of its chunk, and of whatever is
// complete with it.
template <int kinds>
__device__ __forceinline__ void put_sums(const double (&lane)[kinds], const Folding& folding) {
  double sum[kinds];
#pragma unroll
  for (int k = 0; k < kinds; ++k) sum[k] = folded(lane[k]);
  long long none = 0;
  fold_up(folding, sum, none);
}

// Takes the sums of the tensor that the chunk of a block is a part of.
template <int kinds>
__device__ __forceinline__ void get_totals(double (&total)[kinds], const Folding& folding,
                                           int block) {
  const int page = folding.nodes[folding.first + block].parent;
  const double* const sums = folding.sums + folding.nodes[page].parent;
#pragma unroll
  for (int k = 0; k < kinds; ++k) total[k] = sums[k * folding.stride];
}

// Lanes take their neighbours in the order of sums.cuh, wherever arrays begin.
template <class Own>
__device__ __forceinline__ void in_order(const Own& own, int count, unsigned aligned) {
  constexpr int vector = Own::vector < kNeighbours ? Own::vector : kNeighbours;
#pragma unroll 1
  for (int i = int(threadIdx.x) * kNeighbours; i < count; i += kRound) {
    if (aligned && i + kNeighbours <= count) {
#pragma unroll
      for (int j = 0; j < kNeighbours; j += vector) own.template update<vector>(i + j, aligned);
    } else {
#pragma unroll 1
      for (int j = i; j < min(i + kNeighbours, count); ++j) own.template update<1>(j, aligned);
    }
  }
}

template <class R, typename... S>
struct Measuring {
  using Rule = R;
  static constexpr bool rounds = Stored<R, S...>::rounds;

  template <typename T, typename P, typename G, int arrays>
  static __device__ __forceinline__ void run(const Argument<arrays>& argument, const Chunk& chunk,
                                             const Tensor<arrays>& tensor, const void* grad, int row,
                                             T factor) {
    double lane[R::sums] = {};
    const auto own = argument.template row<Row<R, T>>(row);
    const Row<First<R, T>, T> first{own.frame, {own.rule, lane}, own.steps};
    const auto step =
        Stored<R, S...>::template at<T, P, G>(first, factor, argument, chunk, tensor, grad);
    in_order(step, chunk.count, step.aligned(0));
    put_sums(lane, argument.folding);
  }
};

template <class R, typename... S>
struct Finishing {
  using Rule = R;
  static constexpr bool rounds = Stored<R, S...>::rounds;

  template <typename T, typename P, typename G, int arrays>
  static __device__ __forceinline__ void run(const Argument<arrays>& argument, const Chunk& chunk,
                                             const Tensor<arrays>& tensor, const void* grad, int row,
                                             T factor) {
    const auto own = argument.template row<Row<R, T>>(row);
    double total[R::sums];
    get_totals(total, argument.folding, blockIdx.x);
    const T size = own.rule.finish(total);
    const Row<Second<R, T>, T> second{own.frame, {own.rule, size}, own.steps};
    Stored<R, S...>::template at<T, P, G>(second, factor, argument, chunk, tensor, grad)
        .run(chunk.count);
  }
};
