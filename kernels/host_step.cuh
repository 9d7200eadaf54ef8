// A whole optimizer step on a CPU: the tables of the CUDA kernel, walked by threads of the host.
#pragma once

#include <cstddef>
#include <utility>

// What a step is called with; lucid_gpu/execution/compiled.py fills it in.
struct Argument {
  const Chunk* chunks;
  const void* tensors;
  const void* const* grads;  // of each tensor; null where there is none in this step
  const int* rows;           // which row of scalars each tensor takes
  const void* table;         // of rows
  const int* shares;         // the first chunk of each share of the work, and the end of the last
  int count;                 // of shares
  int next;                  // the first share that no thread has taken
};

// Updates a run of neighbouring elements; `slot` are the slots in use, each stored as its S.
template <class Rule, typename T, typename P, typename G, typename... S, std::size_t... used,
          std::size_t... all>
void update(const Row<Rule, T> row, int count, P* param, const G* grad,
            std::index_sequence<used...>, std::index_sequence<all...>, S*... slot) {
  // The arrays of a parameter do not overlap, which the compiler cannot see.
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    T value = T(param[i]), gradient = T(grad[i]);
    T state[Rule::slots + 1] = {T(slot[i])...};
    row.frame(value, gradient);
    row.rule(value, gradient, state[all]...);
    param[i] = P(value);
    ((slot[i] = S(state[used])), ...);
  }
}

// A rule, and what its slots are stored as.
template <class R, typename... S>
struct Stored {
  using Rule = R;

  template <typename T, typename P, typename G, std::size_t... used>
  static void run(const Argument& argument, const Chunk& chunk, const Tensor<Rule::slots>& tensor,
                  const void* grad, std::index_sequence<used...> positions) {
    update(static_cast<const Row<Rule, T>*>(argument.table)[argument.rows[chunk.tensor]],
           chunk.count, static_cast<P*>(tensor.array[0]) + chunk.start,
           static_cast<const G*>(grad) + chunk.start, positions,
           std::make_index_sequence<Rule::slots>{},
           static_cast<S*>(tensor.array[1 + used]) + chunk.start...);
  }

  template <typename T, typename P, typename G>
  static void run(const Argument& argument, const Chunk& chunk, const void* grad) {
    const auto tensors = static_cast<const Tensor<Rule::slots>*>(argument.tensors);
    run<T, P, G>(argument, chunk, tensors[chunk.tensor], grad, std::index_sequence_for<S...>{});
  }
};

// Runs the chunk with the rule at position `index`.
template <int index, typename T, typename P, typename G, class First, class... Others>
void dispatch(const Argument& argument, const Chunk& chunk, const void* grad, long long variant) {
  if constexpr (sizeof...(Others) > 0) {
    if (variant != index)
      return dispatch<index + 1, T, P, G, Others...>(argument, chunk, grad, variant);
  }
  First::template run<T, P, G>(argument, chunk, grad);
}

// Updates every tensor that has a gradient, together with all other threads that are called with
// the same argument. T computes; P and G are what parameter and gradient are stored as.
template <typename T, typename P, typename G, class First, class... Others>
void host_step(Argument& argument) {
  const auto tensors = static_cast<const Tensor<First::Rule::slots>*>(argument.tensors);
  for (;;) {
    const int share = __atomic_fetch_add(&argument.next, 1, __ATOMIC_RELAXED);
    if (share >= argument.count) return;
    for (int i = argument.shares[share]; i < argument.shares[share + 1]; ++i) {
      const Chunk chunk = argument.chunks[i];
      if (const void* grad = argument.grads[chunk.tensor])
        dispatch<0, T, P, G, First, Others...>(argument, chunk, grad,
                                               tensors[chunk.tensor].variant);
    }
  }
}
