// Steps that tell on a CPU, as telemetry.cuh on a GPU: Python folds the sums of chunks.
#pragma once

// Leaves what elements became, and how far they moved, to be added in the order of sums.cuh.
template <class F, typename T>
struct Watched : F {
  T *after, *change;
};

template <class F, typename T> constexpr bool kWritesSlots<Watched<F, T>> = kWritesSlots<F>;

template <class F, typename T>
inline void watch(const Watched<F, T>& functor, int i, T before, T after) {
  functor.after[i] = after;
  functor.change[i] = after - before;
}

template <class F, typename T>
Row<Watched<F, T>, T> watched(const Row<F, T>& own, T* after, T* change) {
  return {own.frame, {own.rule, after, change}, own.steps};
}

// The phase of a rule that moves parameters, which also tells.
template <class Phase>
struct Watching : Phase {
  template <typename T, typename P, typename G, int arrays>
  static void run(const Argument& argument, const Chunk& chunk, const Tensor<arrays>& tensor,
                  const void* grad) {
    const auto& own = Phase::template functor<T>(argument, chunk);
    T after[kChunk], change[kChunk];
    for (int done = 0; done < chunk.count; done += kDrawn) {
      const Chunk part{chunk.start + done, chunk.tensor, std::min(kDrawn, chunk.count - done)};
      Phase::template step<T, P, G>(watched(own, after + done, change + done), argument, part, tensor,
                                    grad);
    }
    double* const sums = argument.watched + (&chunk - argument.chunks);
    long long nonfinite;
    measure(after, chunk.count, sums[0], nonfinite);
    measure(change, chunk.count, sums[argument.stride], nonfinite);
  }
};
