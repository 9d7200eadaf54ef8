// Rules of two phases on a CPU, as two_phase.cuh on a GPU: two calls, between which Python folds.
#pragma once

// Leaves what is measured in arrays, to be added in the order of sums.cuh afterwards.
template <class R, typename T>
struct First : R {
  T* measured[R::sums];
};

template <class R, typename T>
struct Second : R {
  T size;

  template <typename... S>
  void operator()(T& param, T g, S&... slot) const {
    R::update(param, g, slot..., size);
  }
};

template <class R, typename T> constexpr bool kWritesParam<First<R, T>> = false;
template <class R, typename T> constexpr bool kWritesSlots<First<R, T>> = R::slots_move_first;
template <class R, typename T> constexpr bool kWritesSlots<Second<R, T>> = !R::slots_move_first;

template <class R, typename T, typename... S>
inline void apply(const First<R, T>& rule, int i, T& param, T g, S&... slot) {
  T measured[R::sums];
  rule.measure(param, g, slot..., measured);
  for (int k = 0; k < R::sums; ++k) rule.measured[k][i] = measured[k];
}

template <class R, typename... S>
struct Measuring {
  using Rule = R;

  template <typename T, typename P, typename G, int arrays>
  static void run(const Argument& argument, const Chunk& chunk, const Tensor<arrays>& tensor,
                  const void* grad) {
    const auto& own = row_of<R, T>(argument, chunk);
    T measured[R::sums][kChunk];
    for (int done = 0; done < chunk.count; done += kDrawn) {
      Row<First<R, T>, T> first{own.frame, {own.rule, {}}, own.steps};
      for (int k = 0; k < R::sums; ++k) first.rule.measured[k] = measured[k] + done;
      const Chunk part{chunk.start + done, chunk.tensor, std::min(kDrawn, chunk.count - done)};
      Stored<R, S...>::template step<T, P, G>(first, argument, part, tensor, grad);
    }
    double* const sums = argument.sums + (&chunk - argument.chunks);
    long long nonfinite;
    for (int k = 0; k < R::sums; ++k)
      measure(measured[k], chunk.count, sums[k * argument.stride], nonfinite);
  }
};

template <class R, typename... S>
struct Finishing : Stored<R, S...> {
  template <typename T, typename P, typename G, int arrays>
  static void run(const Argument& argument, const Chunk& chunk, const Tensor<arrays>& tensor,
                  const void* grad) {
    const auto second = functor<T>(argument, chunk);
    Stored<R, S...>::template step<T, P, G>(second, argument, chunk, tensor, grad);
  }

  template <typename T>
  static Row<Second<R, T>, T> functor(const Argument& argument, const Chunk& chunk) {
    const auto& own = row_of<R, T>(argument, chunk);
    const T size = own.rule.finish(argument.totals + (long long)(chunk.tensor) * R::sums);
    return {own.frame, {own.rule, size}, own.steps};
  }
};
