// The one generic kernel: a whole optimizer step, any number of tensors and groups, any rule.
//
// One block updates one chunk. The tables are those of lucid_gpu/execution/plan.py; the struct
// members stand in the same order there.
#pragma once

constexpr int kThreads = 256;
constexpr int kCarriedBytes = 2560;

// The one argument of the kernel. Rows of scalars come with the launch; more of them than it can
// carry, or those of a launch that a graph repeats, come from a table.
template <int slots>
struct Argument {
  const Chunk* chunks;
  const Tensor<slots>* tensors;
  const void* const* grads;  // of each tensor; null where there is none in this step
  const int* rows;           // which row of scalars each tensor takes
  const void* table;         // of rows, or null
  alignas(8) char carried[kCarriedBytes];

  template <class Row>
  __device__ __forceinline__ Row row(int index) const {
    Row row;  // overwritten: a choice between two of them takes six more registers
    memcpy(&row, carried + sizeof(Row) * (table ? 0 : index), sizeof(Row));
    if (table) row = static_cast<const Row*>(table)[index];
    return row;
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

// The same for an array that begins elsewhere between multiples of 16 bytes than the others do: it
// is read and written element by element, and keeps no other array from its vectors. Neighbours in
// other registers of a thread share lines of the cache, so floats are not streamed; doubles are, for
// otherwise registers are spilled.
template <int width, typename T>
__device__ __forceinline__ Pack<T, width> load(const T* from, bool aligned) {
  if constexpr (width > 1) {
    if (!aligned) {
      constexpr bool streams = sizeof(T) == 8;
      Pack<T, width> pack;
#pragma unroll
      for (int j = 0; j < width; ++j) pack.at[j] = streams ? load<1>(from + j).at[0] : from[j];
      return pack;
    }
  }
  return load<width>(from);
}

template <int width, typename T>
__device__ __forceinline__ void store(T* to, const Pack<T, width>& pack, bool aligned) {
  if constexpr (width > 1) {
    if (!aligned) {
      constexpr bool streams = sizeof(T) == 8;
#pragma unroll
      for (int j = 0; j < width; ++j)
        if constexpr (streams)
          store<1>(to + j, Pack<T, 1>{pack.at[j]});
        else
          to[j] = pack.at[j];
      return;
    }
  }
  store<width>(to, pack);
}

// Calls rule(param, grad, slots[0], slots[1], …).
template <class Rule, typename T, typename... Unpacked>
__device__ __forceinline__ void apply(const Rule& rule, T& param, T grad, T* slots,
                                      Unpacked&... unpacked) {
  if constexpr (sizeof...(unpacked) == Rule::slots)
    rule(param, grad, unpacked...);
  else
    apply(rule, param, grad, slots, unpacked..., slots[sizeof...(unpacked)]);
}

// Neighbours of each slot in use, in registers, as they are stored. Bits tell which are aligned.
template <int width, typename... S>
struct Slots {
  __device__ __forceinline__ void load_from(void* const*, int, unsigned) {}
  __device__ __forceinline__ void store_to(void* const*, int, unsigned) const {}
  template <typename T> __device__ __forceinline__ void get(T*, int) const {}
  template <typename T> __device__ __forceinline__ void set(const T*, int) {}
};

template <int width, typename S, typename... Others>
struct Slots<width, S, Others...> {
  Pack<S, width> pack;
  Slots<width, Others...> others;

  __device__ __forceinline__ void load_from(void* const* slot, int i, unsigned aligned) {
    pack = load<width>(static_cast<const S*>(*slot) + i, aligned & 1);
    others.load_from(slot + 1, i, aligned >> 1);
  }
  __device__ __forceinline__ void store_to(void* const* slot, int i, unsigned aligned) const {
    store<width>(static_cast<S*>(*slot) + i, pack, aligned & 1);
    others.store_to(slot + 1, i, aligned >> 1);
  }
  template <typename T> __device__ __forceinline__ void get(T* state, int j) const {
    *state = T(pack.at[j]);
    others.get(state + 1, j);
  }
  template <typename T> __device__ __forceinline__ void set(const T* state, int j) {
    pack.at[j] = S(*state);
    others.set(state + 1, j);
  }
};

constexpr __device__ int largest(int size) { return size; }

template <typename... Others>
constexpr __device__ int largest(int one, int two, Others... others) {
  return largest(one > two ? one : two, others...);
}

// A chunk's arrays, each at its first element of the chunk.
template <class Rule, typename T, typename P, typename G, typename... S>
struct Step {
  static_assert(sizeof...(S) == Rule::used);

  const Row<Rule, T> row;
  P* param;
  const G* grad;
  void* slot[Rule::slots + 1];  // one more than there may be: an array has elements

  static constexpr int vector = 16 / largest(sizeof(P), sizeof(G), sizeof(S)...);

  // Loads `width` neighbours to registers, updates each, stores once. Bits tell which arrays are
  // aligned there: the parameter, the gradient, the slots.
  template <int width>
  __device__ __forceinline__ void update(int i, unsigned aligned) const {
    Pack<P, width> p = load<width>(param + i, aligned & 1);
    const Pack<G, width> g = load<width>(grad + i, aligned & 2);
    Slots<width, S...> s;
    s.load_from(slot, i, aligned >> 2);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      T value = T(p.at[j]), gradient = T(g.at[j]);
      T state[Rule::slots + 1] = {};
      s.get(state, j);
      row.frame(value, gradient);
      apply(row.rule, value, gradient, state);
      p.at[j] = P(value);
      s.set(state, j);
    }
    store<width>(param + i, p, aligned & 1);
    s.store_to(slot, i, aligned >> 2);
  }

  // How many elements an array is past the last multiple of a vector.
  template <typename A>
  static __device__ __forceinline__ int phase(const void* array) {
    return int(reinterpret_cast<unsigned long long>(array) / sizeof(A) % vector);
  }

  // Vectors begin where two of parameter, gradient and first slot are aligned, or else that slot.
  __device__ void run(int count) const {
    int first = phase<P>(param), k = 0;
    if (phase<G>(grad) != first) ((first = k++ ? first : phase<S>(slot[0])), ...);
    unsigned aligned = unsigned(phase<P>(param) == first) | unsigned(phase<G>(grad) == first) << 1;
    k = 0;
    ((aligned |= unsigned(phase<S>(slot[k]) == first) << (2 + k), ++k), ...);

    const int head = min((vector - first) % vector, count);
    const int body = (count - head) / vector * vector;
#pragma unroll 1
    for (int i = threadIdx.x; i < count - body; i += kThreads)
      update<1>(i < head ? i : i + body, aligned);
#pragma unroll 1
    for (int i = threadIdx.x * vector; i < body; i += kThreads * vector)
      update<vector>(head + i, aligned);
  }
};

// A rule, and what its slots are stored as.
template <class R, typename... S>
struct Stored {
  using Rule = R;

  template <typename T, typename P, typename G>
  static __device__ __forceinline__ void run(const Argument<Rule::slots>& argument, const Chunk& chunk,
                                             const Tensor<Rule::slots>& tensor, const void* grad, int row) {
    Step<Rule, T, P, G, S...> step{argument.template row<Row<Rule, T>>(row),
                                   static_cast<P*>(tensor.array[0]) + chunk.start,
                                   static_cast<const G*>(grad) + chunk.start,
                                   {}};
    int k = 0;
    ((step.slot[k] = static_cast<S*>(tensor.array[1 + k]) + chunk.start, ++k), ...);
    step.run(chunk.count);
  }
};

// Runs the chunk with the rule at position `index`; the whole block takes the same branch.
template <int index, typename T, typename P, typename G, class First, class... Others>
__device__ __forceinline__ void dispatch(const Argument<First::Rule::slots>& argument,
                                         const Chunk& chunk,
                                         const Tensor<First::Rule::slots>& tensor, const void* grad,
                                         int row) {
  if constexpr (sizeof...(Others) > 0) {
    if (tensor.variant != index)
      return dispatch<index + 1, T, P, G, Others...>(argument, chunk, tensor, grad, row);
  }
  First::template run<T, P, G>(argument, chunk, tensor, grad, row);
}

// T computes; P and G are what parameter and gradient are stored as. The rules are the variants
// that the step needs, all of one family with the same scalars and slots.
template <typename T, typename P, typename G, class First, class... Others>
__global__ void __launch_bounds__(kThreads)
    fused_step(const __grid_constant__ Argument<First::Rule::slots> argument) {
  const Chunk chunk = argument.chunks[blockIdx.x];
  // All under way before any is waited for.
  const Tensor<First::Rule::slots> tensor = argument.tensors[chunk.tensor];
  const void* grad = argument.grads[chunk.tensor];
  const int row = argument.rows[chunk.tensor];
  if (!grad) return;
  dispatch<0, T, P, G, First, Others...>(argument, chunk, tensor, grad, row);
}
