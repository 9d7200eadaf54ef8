// A whole optimizer step on a CPU: the tables of the CUDA kernel, walked by threads of the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <tuple>
#include <utility>

// What a step is called with; lucid_gpu/execution/compiled.py fills it in.
struct Argument {
  const Chunk* chunks;
  const void* tensors;
  const void* const* grads;  // of each tensor; null where there is none in this step
  const int* rows;           // which row of scalars each tensor takes
  const void* table;         // of rows
  unsigned long long seed;   // of stochastic rounding
  double factor;             // of every gradient
  const int* shares;         // the first chunk of each share of the work, and the end of the last
  int count;                 // of shares
  int next;                  // the first share that no thread has taken
  double* sums;              // of each chunk, of the first kind; host_two_phase.cuh has those who sum
  long long stride;          // from those of one kind to those of the next
  const double* totals;      // of each tensor, all kinds
  double* watched;           // of each chunk, of two kinds; host_telemetry.cuh has those who tell
};

// Elements whose random bits are drawn ahead of their update, so that that is a plain loop.
constexpr int kDrawn = 1024;

// The random bits that elements are rounded with; none for what is not rounded so.
template <typename S>
struct Dice {
  void roll(const Randomness&, long long, int) {}
};

template <int number>
struct Dice<Rounded<number>> {
  unsigned short bits[kDrawn + 16];
  const unsigned short* first;

  void roll(const Randomness& randomness, long long element, int count) {
    const long long block = element >> 3;
    const int skip = int(element & 7), blocks = (skip + count + 7) / 8;
    unsigned words[kDrawn / 2 + 8];
    for (int i = 0; i < blocks; ++i) {
      const Draw drawn = randomness.draw(block + i, number);
      for (int k = 0; k < 4; ++k) words[4 * i + k] = drawn.word[k];
    }
    for (int i = 0; i < 4 * blocks; ++i) {
      bits[2 * i] = words[i] & 0xFFFFu;
      bits[2 * i + 1] = words[i] >> 16;
    }
    first = bits + skip;
  }
};

template <typename T> inline void set(float& to, T value, const Dice<float>&, int) { to = float(value); }
template <typename T> inline void set(double& to, T value, const Dice<double>&, int) {
  to = double(value);
}
template <int number, typename T>
inline void set(Rounded<number>& to, T value, const Dice<Rounded<number>>& dice, int i) {
  round_to(to, float(value), dice.first[i]);
}

// A parameter as it is stored.
template <typename P>
struct Param {
  P* __restrict__ param;
  Dice<P> dice;

  Param(void* array, void*) : param(static_cast<P*>(array)) {}
  void roll(const Randomness& randomness, long long element, int count) {
    dice.roll(randomness, element, count);
  }
  void advance(int count) { param += count; }
  template <typename T> T get(int i) const { return value_of<T>(param[i]); }
  template <typename T> void put(int i, T value) { set(param[i], value, dice, i); }
};

template <typename H>
struct Param<Mastered<H>> {
  H* __restrict__ param;
  float* __restrict__ master;

  Param(void* array, void* beside) : param(static_cast<H*>(array)), master(static_cast<float*>(beside)) {}
  void roll(const Randomness&, long long, int) {}
  void advance(int count) { param += count, master += count; }
  template <typename T> T get(int i) const { return T(master[i]); }
  template <typename T> void put(int i, T value) {
    master[i] = float(value);
    round_to(param[i], float(value));
  }
};

template <>
struct Param<Split> {
  unsigned short* __restrict__ high;
  short* __restrict__ low;

  Param(void* array, void* beside)
      : high(static_cast<unsigned short*>(array)), low(static_cast<short*>(beside)) {}
  void roll(const Randomness&, long long, int) {}
  void advance(int count) { high += count, low += count; }
  template <typename T> T get(int i) const { return T(join(high[i], low[i])); }
  template <typename T> void put(int i, T value) { split(float(value), high[i], low[i]); }
};

// Calls a functor for the element at some place of a run.
template <class Rule, typename T, typename... S>
inline void apply(const Rule& rule, int, T& param, T g, S&... slot) {
  rule(param, g, slot...);
}

// Takes note of what an element was and became; host_telemetry.cuh has those who do.
template <class Rule, typename T>
inline void watch(const Rule&, int, T, T) {}

// Updates a run of neighbouring elements; `slot` are the slots in use, each stored as its S.
template <class Rule, typename T, typename P, typename G, typename... S, std::size_t... used,
          std::size_t... all>
inline void update(const Row<Rule, T>& row, T factor, int count, Param<P>& param, const G* grad,
                   std::index_sequence<used...>, std::index_sequence<all...>, const Dice<S>&... dice,
                   S*... slot) {
  const Row<Rule, T> own = row;
  // The arrays of a parameter do not overlap, which the compiler cannot see.
#pragma GCC ivdep
  for (int i = 0; i < count; ++i) {
    T value = param.template get<T>(i), gradient = value_of<T>(grad[i]) * factor;
    T state[Rule::slots + 1] = {value_of<T>(slot[i])...};
    const T before = value;
    own.frame(value, gradient);
    apply(own.rule, i, value, gradient, state[all]...);
    watch(own.rule, i, before, value);
    if constexpr (kWritesParam<Rule>) param.put(i, value);
    if constexpr (kWritesSlots<Rule>) (set(slot[i], state[used], dice, i), ...);
  }
}

template <class Rule, typename T>
const Row<Rule, T>& row_of(const Argument& argument, const Chunk& chunk) {
  return static_cast<const Row<Rule, T>*>(argument.table)[argument.rows[chunk.tensor]];
}

// A rule, and what its slots are stored as.
template <class R, typename... S>
struct Stored {
  using Rule = R;

  // Updates a chunk by the functor of a row.
  template <typename T, typename P, typename G, class Functor, int arrays>
  static void step(const Row<Functor, T>& row, const Argument& argument, const Chunk& chunk,
                   const Tensor<arrays>& tensor, const void* gradients) {
    step<T, P, G>(row, argument, chunk, tensor, gradients, std::index_sequence_for<S...>{});
  }

  template <typename T, typename P, typename G, class Functor, int arrays, std::size_t... used>
  static void step(const Row<Functor, T>& row, const Argument& argument, const Chunk& chunk,
                   const Tensor<arrays>& tensor, const void* gradients,
                   std::index_sequence<used...> positions) {
    constexpr auto all = std::make_index_sequence<Rule::slots>{};
    constexpr bool rounds = (kIsRounded<P> || ... || kIsRounded<S>);
    const Randomness randomness{argument.seed, row.count(), tensor.stream};
    const long long start = chunk.start;
    void* beside = nullptr;
    if constexpr (Elements<P>::beside != 0)
      beside = static_cast<char*>(tensor.array[1 + sizeof...(S)]) + start * Elements<P>::beside;
    Param<P> param(static_cast<typename Elements<P>::type*>(tensor.array[0]) + start, beside);
    const G* grad = static_cast<const G*>(gradients) + start;
    std::tuple<Dice<S>...> dice;
    for (int done = 0; done < chunk.count;) {
      const int count = rounds ? std::min(kDrawn, chunk.count - done) : chunk.count;
      const long long element = tensor.first + start + done;
      param.roll(randomness, element, count);
      (std::get<used>(dice).roll(randomness, element, count), ...);
      update<Functor, T, P, G, S...>(row, T(argument.factor), count, param, grad + done, positions, all,
                                  std::get<used>(dice)...,
                                  static_cast<S*>(tensor.array[1 + used]) + start + done...);
      param.advance(count);
      done += count;
    }
  }

  template <typename T, typename P, typename G, int arrays>
  static void run(const Argument& argument, const Chunk& chunk, const Tensor<arrays>& tensor,
                  const void* grad) {
    step<T, P, G>(functor<T>(argument, chunk), argument, chunk, tensor, grad);
  }

  template <typename T>
  static const Row<Rule, T>& functor(const Argument& argument, const Chunk& chunk) {
    return row_of<Rule, T>(argument, chunk);
  }
};

// Runs the chunk with the rule at position `index`.
template <int index, typename T, typename P, typename G, class First, class... Others, int arrays>
void dispatch(const Argument& argument, const Chunk& chunk, const Tensor<arrays>& tensor,
              const void* grad) {
  if constexpr (sizeof...(Others) > 0) {
    if (tensor.variant != index)
      return dispatch<index + 1, T, P, G, Others...>(argument, chunk, tensor, grad);
  }
  First::template run<T, P, G>(argument, chunk, tensor, grad);
}

// Updates every tensor that has a gradient, together with all other threads that are called with
// the same argument. T computes; P and G are what parameter and gradient are stored as.
template <typename T, typename P, typename G, class First, class... Others>
void host_step(Argument& argument) {
  constexpr int arrays = 1 + First::Rule::slots + (Elements<P>::beside != 0);
  const auto tensors = static_cast<const Tensor<arrays>*>(argument.tensors);
  for (;;) {
    const int share = __atomic_fetch_add(&argument.next, 1, __ATOMIC_RELAXED);
    if (share >= argument.count) return;
    for (int i = argument.shares[share]; i < argument.shares[share + 1]; ++i) {
      const Chunk& chunk = argument.chunks[i];
      if (const void* grad = argument.grads[chunk.tensor])
        dispatch<0, T, P, G, First, Others...>(argument, chunk, tensors[chunk.tensor], grad);
    }
  }
}
