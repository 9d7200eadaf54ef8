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
    for (int k = 0; k < R::sums; ++k) add_square(lane[k], measured[k]);
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
struct Finishing : Stored<R, S...> {
  using Arrays = Stored<R, S...>;

  template <typename T, typename P, typename G, int arrays>
  static __device__ __forceinline__ void run(const Argument<arrays>& argument, const Chunk& chunk,
                                             const Tensor<arrays>& tensor, const void* grad, int row,
                                             T factor) {
    const auto second = functor<T>(argument, row);
    Arrays::template at<T, P, G>(second, factor, argument, chunk, tensor, grad).run(chunk.count);
  }

  template <typename T, int arrays>
  static __device__ __forceinline__ Row<Second<R, T>, T> functor(const Argument<arrays>& argument,
                                                                 int row) {
    const auto own = argument.template row<Row<R, T>>(row);
    double total[R::sums];
    get_totals(total, argument.folding, blockIdx.x);
    return {own.frame, {own.rule, own.rule.finish(total)}, own.steps};
  }
};
