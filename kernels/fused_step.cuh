// The one generic kernel: a whole optimizer step, any number of tensors and groups, any rule.
//
// One block updates one chunk, a run of neighbouring elements of one tensor. The tables are those
// of lucid_gpu/execution/plan.py; the struct members stand in the same order there.
#pragma once

constexpr int kThreads = 256;
constexpr int kCarriedBytes = 2048;

struct Chunk {
  long long start;
  int tensor;
  int count;
};

template <int slots>
struct Tensor {
  void* array[1 + slots];  // the parameter, then its slots
  int rule;                // row of scalars
  int variant;             // which of the kernel's rules
};

// The one argument of the kernel. Rows of scalars come with the launch; more of them than it can
// carry, or those of a launch that a graph repeats, come from a table.
template <int slots>
struct Argument {
  const Chunk* chunks;
  const Tensor<slots>* tensors;
  const void* const* grads;
  const void* table;  // of rows, or null
  alignas(8) char carried[kCarriedBytes];

  template <class Rule>
  __device__ __forceinline__ Rule row(int index) const {
    Rule rule;  // overwritten: a choice between two of them takes six more registers
    memcpy(&rule, carried + sizeof(Rule) * (table ? 0 : index), sizeof(Rule));
    if (table) rule = static_cast<const Rule*>(table)[index];
    return rule;
  }
};

template <typename T, int width>
struct alignas(width * sizeof(T)) Pack {
  T at[width];
};

template <int bytes> struct Word;
template <> struct Word<16> { using type = uint4; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<4> { using type = unsigned; };

// Streaming loads and stores: each element is touched once a step, so caching it evicts others.
template <int width, typename T>
__device__ __forceinline__ Pack<T, width> load(const T* from) {
  using W = typename Word<sizeof(Pack<T, width>)>::type;
  const W word = __ldcs(reinterpret_cast<const W*>(from));
  Pack<T, width> pack;
  memcpy(&pack, &word, sizeof(pack));
  return pack;
}

template <int width, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, width>& pack) {
  using W = typename Word<sizeof(Pack<T, width>)>::type;
  W word;
  memcpy(&word, &pack, sizeof(pack));
  __stcs(reinterpret_cast<W*>(to), word);
}

// Calls rule(param, grad, slots[0], slots[1], …).
template <class Rule, typename T, typename... Unpacked>
__device__ __forceinline__ void apply(const Rule& rule, T& param, T grad, T (&slots)[Rule::slots],
                                      Unpacked&... unpacked) {
  if constexpr (sizeof...(unpacked) == Rule::slots)
    rule(param, grad, unpacked...);
  else
    apply(rule, param, grad, slots, unpacked..., slots[sizeof...(unpacked)]);
}

// A chunk's arrays, each at its first element of the chunk.
template <class Rule, typename T, typename P, typename G, typename S>
struct Step {
  const Rule rule;
  P* param;
  const G* grad;
  S* slot[Rule::slots];

  static constexpr int widest = sizeof(P) > sizeof(G) ? (sizeof(P) > sizeof(S) ? sizeof(P) : sizeof(S))
                                                      : (sizeof(G) > sizeof(S) ? sizeof(G) : sizeof(S));
  static constexpr int vector = 16 / widest;

  // Loads `width` neighbours to registers, updates each, stores once.
  template <int width>
  __device__ __forceinline__ void update(int i) const {
    Pack<P, width> p = load<width>(param + i);
    const Pack<G, width> g = load<width>(grad + i);
    Pack<S, width> s[Rule::slots];
#pragma unroll
    for (int k = 0; k < Rule::used; ++k) s[k] = load<width>(slot[k] + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      T value = T(p.at[j]);
      T state[Rule::slots] = {};
#pragma unroll
      for (int k = 0; k < Rule::used; ++k) state[k] = T(s[k].at[j]);
      apply(rule, value, T(g.at[j]), state);
      p.at[j] = P(value);
#pragma unroll
      for (int k = 0; k < Rule::used; ++k) s[k].at[j] = S(state[k]);
    }
    store<width>(param + i, p);
#pragma unroll
    for (int k = 0; k < Rule::used; ++k) store<width>(slot[k] + i, s[k]);
  }

  // How many elements precede the first at which every array is aligned; `count` if there is none.
  __device__ __forceinline__ int peel(int count) const {
    const auto offset = [](const void* p, int size) {
      return int(reinterpret_cast<unsigned long long>(p) / size % vector);
    };
    const int first = offset(param, sizeof(P));
    bool together = offset(grad, sizeof(G)) == first;
    for (int k = 0; k < Rule::used; ++k) together = together && offset(slot[k], sizeof(S)) == first;
    const int head = (vector - first) % vector;
    return together && head < count ? head : count;
  }

  __device__ void run(int count) const {
    const int head = peel(count);
    const int body = (count - head) / vector * vector;
#pragma unroll 1
    for (int i = threadIdx.x; i < count - body; i += kThreads) update<1>(i < head ? i : i + body);
    for (int i = threadIdx.x * vector; i < body; i += kThreads * vector) update<vector>(head + i);
  }
};

// Runs the chunk with the rule at position `index`; the whole block takes the same branch.
template <int index, typename T, typename P, typename G, typename S, class Rule, class... Others>
__device__ __forceinline__ void dispatch(const Argument<Rule::slots>& argument, const Chunk& chunk,
                                         const Tensor<Rule::slots>& tensor, const void* grad) {
  if constexpr (sizeof...(Others) > 0) {
    if (tensor.variant != index)
      return dispatch<index + 1, T, P, G, S, Others...>(argument, chunk, tensor, grad);
  }
  Step<Rule, T, P, G, S> step{argument.template row<Rule>(tensor.rule),
                              static_cast<P*>(tensor.array[0]) + chunk.start,
                              static_cast<const G*>(grad) + chunk.start,
                              {}};
  for (int k = 0; k < Rule::used; ++k)
    step.slot[k] = static_cast<S*>(tensor.array[1 + k]) + chunk.start;
  step.run(chunk.count);
}

// T computes; P, G and S are what parameter, gradient and slots are stored as. The rules are the
// variants that the step needs, all of one family with the same scalars and slots.
template <typename T, typename P, typename G, typename S, class Rule, class... Others>
__global__ void __launch_bounds__(kThreads)
    fused_step(const __grid_constant__ Argument<Rule::slots> argument) {
  const Chunk chunk = argument.chunks[blockIdx.x];
  // Both under way before either is waited for.
  const Tensor<Rule::slots> tensor = argument.tensors[chunk.tensor];
  const void* grad = argument.grads[chunk.tensor];
  dispatch<0, T, P, G, S, Rule, Others...>(argument, chunk, tensor, grad);
}
