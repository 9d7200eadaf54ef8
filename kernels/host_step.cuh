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

// What follows the head of every NumPy array: PyArrayObject_fields of numpy/ndarraytypes.h, which
// all compiled users of NumPy have built in, so that it cannot change beneath them.
struct ArrayFields {
  void* data;
  int dimensions;
  const void *shape, *strides, *base, *dtype;
  int flags;
};

// Where NumPy arrays lie and how they are laid out, as contiguity() of device/arrays.py says it:
// 1, plus 2 for C order, plus 4 for Fortran order; 1 if elements are not aligned; 0 for no array.
// Asking each array from Python takes twenty times as long.
extern "C" void look(const char* const* arrays, long long count, long long head_bytes,
                     void** addresses, unsigned char* layouts) {
  constexpr int kOrders = 3, kAligned = 0x100, kAhead = 16;
  for (long long i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(arrays[i + kAhead] + head_bytes);
    addresses[i] = nullptr;
    layouts[i] = 0;
    if (!arrays[i]) continue;
    const auto fields = reinterpret_cast<const ArrayFields*>(arrays[i] + head_bytes);
    addresses[i] = fields->data;
    layouts[i] = fields->flags & kAligned ? 1 + 2 * (fields->flags & kOrders) : 1;
  }
}
