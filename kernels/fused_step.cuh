// The one generic kernel: a whole optimizer step, any number of tensors and groups, any rule.
//
// One block updates one chunk. The tables are those of lucid_gpu/execution/plan.py; the struct
// members stand in the same order there.
#pragma once

constexpr int kThreads = 256;
constexpr int kCarriedBytes = 2816;

// The one argument of the kernel. Rows of scalars come with the launch; more of them than it can
// carry, or those of a launch that a graph repeats, come from a table.
template <int arrays>
struct Argument {
  const Chunk* chunks;
  const Tensor<arrays>* tensors;
  const void* const* grads;  // of each tensor; null where there is none in this step
  // Which row of scalars each tensor takes. Ahead of them: how many skipped steps the rows know of,
  // and how far on the row for one more is.
  const int* rows;
  const void* table;         // of rows, or null
  unsigned long long seed;   // of stochastic rounding
  const Outcome* outcome;    // of the measured gradients, or null
  Folding folding;           // of what chunks measure; two_phase.cuh has those who do
  Folding watched;           // of what they do to parameters; telemetry.cuh has those who tell
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
template <> struct Word<2> { using type = unsigned short; };

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

// Takes note of what an element was and became; telemetry.cuh has those who do.
template <class Rule, typename T>
__device__ __forceinline__ void watch(const Rule&, T, T) {}

// The random bits that neighbours are rounded with; none for what is not rounded so.
template <int width, typename S>
struct Dice {
  __device__ __forceinline__ void roll(const Randomness&, long long) {}
};

template <int width, int number>
struct Dice<width, Rounded<number>> {
  unsigned word[(width + 1) / 2];

  __device__ __forceinline__ unsigned at(int j) const { return word[j / 2] >> 16 * (j % 2) & 0xFFFFu; }

  __device__ __forceinline__ void roll(const Randomness& randomness, long long element) {
    if constexpr (width == 1) {
      word[0] = randomness.bits(element, number);
    } else if (element % width == 0) {
      const Draw drawn = randomness.draw(element >> 3, number);
#pragma unroll
      for (int k = 0; k < width / 2; ++k)
        word[k] = width < 8 && element & 4 ? drawn.word[(2 + k) % 4] : drawn.word[k];
    } else {
#pragma unroll
      for (int k = 0; k < width / 2; ++k)
        word[k] = randomness.bits(element + 2 * k, number) |
                  randomness.bits(element + 2 * k + 1, number) << 16;
    }
  }
};

template <int width, typename T>
__device__ __forceinline__ void set(float& to, T value, const Dice<width, float>&, int) {
  to = float(value);
}
template <int width, typename T>
__device__ __forceinline__ void set(double& to, T value, const Dice<width, double>&, int) {
  to = double(value);
}
template <int width, int number, typename T>
__device__ __forceinline__ void set(Rounded<number>& to, T value,
                                    const Dice<width, Rounded<number>>& dice, int j) {
  round_to(to, float(value), dice.at(j));
}

// Neighbours of a parameter, in registers, as they are stored. Bits tell whether it is aligned, and
// whether what lies beside it is.
template <int width, typename P>
struct Param {
  Pack<P, width> pack;
  Dice<width, P> dice;

  __device__ __forceinline__ void load_from(const P* param, const void*, int i, unsigned aligned,
                                            const Randomness& randomness, long long element) {
    pack = load<width>(param + i, aligned & 1);
    dice.roll(randomness, element);
  }
  __device__ __forceinline__ void store_to(P* param, void*, int i, unsigned aligned) const {
    store<width>(param + i, pack, aligned & 1);
  }
  template <typename T> __device__ __forceinline__ T get(int j) const { return value_of<T>(pack.at[j]); }
  template <typename T> __device__ __forceinline__ void put(int j, T value) {
    set(pack.at[j], value, dice, j);
  }
};

template <int width, typename H>
struct Param<width, Mastered<H>> {
  Pack<float, width> master;
  Pack<H, width> pack;

  __device__ __forceinline__ void load_from(const H*, const void* beside, int i, unsigned aligned,
                                            const Randomness&, long long) {
    master = load<width>(static_cast<const float*>(beside) + i, aligned & 2);
  }
  __device__ __forceinline__ void store_to(H* param, void* beside, int i, unsigned aligned) const {
    store<width>(static_cast<float*>(beside) + i, master, aligned & 2);
    store<width>(param + i, pack, aligned & 1);
  }
  template <typename T> __device__ __forceinline__ T get(int j) const { return T(master.at[j]); }
  template <typename T> __device__ __forceinline__ void put(int j, T value) {
    master.at[j] = float(value);
    round_to(pack.at[j], master.at[j]);
  }
};

template <int width>
struct Param<width, Split> {
  Pack<unsigned short, width> high;
  Pack<short, width> low;

  __device__ __forceinline__ void load_from(const unsigned short* param, const void* beside, int i,
                                            unsigned aligned, const Randomness&, long long) {
    high = load<width>(param + i, aligned & 1);
    low = load<width>(static_cast<const short*>(beside) + i, aligned & 2);
  }
  __device__ __forceinline__ void store_to(unsigned short* param, void* beside, int i,
                                           unsigned aligned) const {
    store<width>(param + i, high, aligned & 1);
    store<width>(static_cast<short*>(beside) + i, low, aligned & 2);
  }
  template <typename T> __device__ __forceinline__ T get(int j) const {
    return T(join(high.at[j], low.at[j]));
  }
  template <typename T> __device__ __forceinline__ void put(int j, T value) {
    split(float(value), high.at[j], low.at[j]);
  }
};

// Neighbours of each slot in use, in registers, as they are stored. Bits tell which are aligned.
template <int width, typename... S>
struct Slots {
  __device__ __forceinline__ void load_from(void* const*, int, unsigned, const Randomness&, long long) {}
  __device__ __forceinline__ void store_to(void* const*, int, unsigned) const {}
  template <typename T> __device__ __forceinline__ void get(T*, int) const {}
  template <typename T> __device__ __forceinline__ void put(const T*, int) {}
};

template <int width, typename S, typename... Others>
struct Slots<width, S, Others...> {
  Pack<S, width> pack;
  Dice<width, S> dice;
  Slots<width, Others...> others;

  __device__ __forceinline__ void load_from(void* const* slot, int i, unsigned aligned,
                                            const Randomness& randomness, long long element) {
    pack = load<width>(static_cast<const S*>(*slot) + i, aligned & 1);
    dice.roll(randomness, element);
    others.load_from(slot + 1, i, aligned >> 1, randomness, element);
  }
  __device__ __forceinline__ void store_to(void* const* slot, int i, unsigned aligned) const {
    store<width>(static_cast<S*>(*slot) + i, pack, aligned & 1);
    others.store_to(slot + 1, i, aligned >> 1);
  }
  template <typename T> __device__ __forceinline__ void get(T* state, int j) const {
    *state = value_of<T>(pack.at[j]);
    others.get(state + 1, j);
  }
  template <typename T> __device__ __forceinline__ void put(const T* state, int j) {
    set(pack.at[j], *state, dice, j);
    others.put(state + 1, j);
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

  using Element = typename Elements<P>::type;
  static constexpr int beside_bytes = Elements<P>::beside;
  static constexpr bool has_beside = beside_bytes != 0;

  const Row<Rule, T> row;
  const T factor;  // of the gradient
  const Randomness randomness;
  const long long first;  // the number of the first element in the whole parameter
  Element* param;
  const G* grad;
  void* slot[Rule::slots + 2];  // what lies beside the parameter after those in use

  static constexpr int vector = 16 / largest(sizeof(Element), sizeof(G), beside_bytes, sizeof(S)...);

  // Loads `width` neighbours to registers, updates each, stores once. Bits tell which arrays are
  // aligned there: the parameter, what lies beside it, the gradient, the slots.
  template <int width>
  __device__ __forceinline__ void update(int i, unsigned aligned) const {
    Param<width, P> p;
    p.load_from(param, slot[Rule::used], i, aligned, randomness, first + i);
    Pack<G, width> g = {};
    if constexpr (kReadsGrad<Rule>) g = load<width>(grad + i, aligned & 4);
    Slots<width, S...> s = {};
    if constexpr (kReadsSlots<Rule>) s.load_from(slot, i, aligned >> 3, randomness, first + i);
#pragma unroll
    for (int j = 0; j < width; ++j) {
      T value = p.template get<T>(j), gradient = value_of<T>(g.at[j]);
      T state[Rule::slots + 1] = {};
      s.get(state, j);
      const T before = value;
      gradient = gradient * factor;
      row.frame(value, gradient);
      apply(row.rule, value, gradient, state);
      watch(row.rule, before, value);
      p.put(j, value);
      s.put(state, j);
    }
    if constexpr (kWritesParam<Rule>) p.store_to(param, slot[Rule::used], i, aligned);
    if constexpr (kWritesSlots<Rule>) s.store_to(slot, i, aligned >> 3);
  }

  // How many elements an array is past the last multiple of a vector.
  static __device__ __forceinline__ int phase(const void* array, int bytes) {
    return int(reinterpret_cast<unsigned long long>(array) / bytes % vector);
  }

  // Which arrays are past it by so many.
  __device__ __forceinline__ unsigned aligned(int begin) const {
    unsigned aligned = unsigned(phase(param, sizeof(Element)) == begin) |
                       unsigned(phase(grad, sizeof(G)) == begin) << 2;
    if constexpr (has_beside)
      aligned |= unsigned(phase(slot[Rule::used], beside_bytes) == begin) << 1;
    int k = 0;
    ((aligned |= unsigned(phase(slot[k], sizeof(S)) == begin) << (3 + k), ++k), ...);
    return aligned;
  }

  // Vectors begin where two of parameter, gradient and first slot are aligned, or else that slot.
  __device__ void run(int count) const {
    int begin = phase(param, sizeof(Element)), k = 0;
    if (phase(grad, sizeof(G)) != begin) {
      ((begin = k++ ? begin : phase(slot[0], sizeof(S))), ...);
      if constexpr (has_beside && sizeof...(S) == 0) begin = phase(slot[0], beside_bytes);
    }
    const unsigned aligned = this->aligned(begin);
    const int head = min((vector - begin) % vector, count);
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
  static constexpr bool rounds = (kIsRounded<S> || ...);

  template <typename T, typename P, typename G, int arrays>
  static __device__ __forceinline__ void run(const Argument<arrays>& argument, const Chunk& chunk,
                                             const Tensor<arrays>& tensor, const void* grad, int row,
                                             T factor) {
    const auto own = functor<T>(argument, row);
    at<T, P, G>(own, factor, argument, chunk, tensor, grad).run(chunk.count);
  }

  template <typename T, int arrays>
  static __device__ __forceinline__ Row<Rule, T> functor(const Argument<arrays>& argument, int row) {
    return argument.template row<Row<Rule, T>>(row);
  }

  // The arrays of a chunk, which step with the functor of a row.
  template <typename T, typename P, typename G, class Functor, int arrays>
  static __device__ __forceinline__ auto at(const Row<Functor, T>& own, T factor,
                                            const Argument<arrays>& argument, const Chunk& chunk,
                                            const Tensor<arrays>& tensor, const void* grad) {
    using Own = Step<Functor, T, P, G, S...>;
    Own step{own,
             factor,
             {argument.seed, own.count(), tensor.stream},
             tensor.first + chunk.start,
             static_cast<typename Own::Element*>(tensor.array[0]) + chunk.start,
             static_cast<const G*>(grad) + chunk.start,
             {}};
    int k = 0;
    ((step.slot[k] = static_cast<S*>(tensor.array[1 + k]) + chunk.start, ++k), ...);
    if constexpr (Own::has_beside)
      step.slot[k] = static_cast<char*>(tensor.array[1 + k]) + chunk.start * Own::beside_bytes;
    return step;
  }
};

// How many arrays a tensor may have beside its gradient.
template <class Rule, typename P>
constexpr int kArrays = 1 + Rule::slots + (Elements<P>::beside != 0);

// Runs the chunk with the rule at position `index`; the whole block takes the same branch.
template <int index, typename T, typename P, typename G, class First, class... Others, int arrays>
__device__ __forceinline__ void dispatch(const Argument<arrays>& argument, const Chunk& chunk,
                                         const Tensor<arrays>& tensor, const void* grad, int row,
                                         T factor) {
  if constexpr (sizeof...(Others) > 0) {
    if (tensor.variant != index)
      return dispatch<index + 1, T, P, G, Others...>(argument, chunk, tensor, grad, row, factor);
  }
  First::template run<T, P, G>(argument, chunk, tensor, grad, row, factor);
}

// Whether a phase adds up what it does to parameters.
template <class Phase> constexpr bool kTells = false;

// Blocks that a multiprocessor is to hold at least: so many threads leave 64 registers for each. Left
// to itself the compiler spills a register to hold one block more. Doubles, random bits and sums of
// what a step does take more.
template <typename T, typename P, class Phase>
constexpr int kBlocks =
    sizeof(T) == sizeof(float) && !kIsRounded<P> && !Phase::rounds && !kTells<Phase> ? 1024 / kThreads
                                                                                     : 1;

// T computes; P and G are what parameter and gradient are stored as. The rules are the variants
// that the step needs, all of one family with the same scalars and slots.
template <typename T, typename P, typename G, class First, class... Others>
__global__ void __launch_bounds__(kThreads, kBlocks<T, P, First>)
    fused_step(const __grid_constant__ Argument<kArrays<typename First::Rule, P>> argument) {
  const Chunk chunk = argument.chunks[blockIdx.x];
  // All under way before any is waited for.
  const auto tensor = argument.tensors[chunk.tensor];
  const void* grad = argument.grads[chunk.tensor];
  int row = argument.rows[chunk.tensor];
  if (!grad) return;
  T factor = 1;
  if (argument.outcome) {
    if (argument.outcome->skipped) return;
    factor = argument.outcome->template factor_of<T>();
    row += (argument.outcome->skips - argument.rows[-2]) * argument.rows[-1];
  }
  dispatch<0, T, P, G, First, Others...>(argument, chunk, tensor, grad, row, factor);
}
