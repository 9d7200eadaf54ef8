// What kernels use of CUDA C++, for a host compiler: one thread runs after the other, or, in kernels
// whose threads wait for each other, until it waits.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block runs after the other

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct Index { unsigned x; };

static Index blockIdx, threadIdx;
static bool misaligned;
static long long vectors;  // loads and stores of 16 bytes

using std::memcpy;
using std::min;
using std::sqrt;

template <typename T>
static T __ldcs(const T* from) {
  misaligned |= reinterpret_cast<std::uintptr_t>(from) % sizeof(T) != 0;
  vectors += sizeof(T) == 16;
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
static void __stcs(T* to, T value) {
  misaligned |= reinterpret_cast<std::uintptr_t>(to) % sizeof(T) != 0;
  vectors += sizeof(T) == 16;
  memcpy(to, &value, sizeof(T));
}

template <typename T>
static T __ldg(const T* from) {
  return __ldcs(from);
}

template <typename T>
static T __ldcg(const T* from) {
  return __ldcs(from);
}

template <typename T>
static void __stcg(T* to, T value) {
  __stcs(to, value);
}

// One block runs after the other: what it wrote is there for the next.
static inline void __threadfence() {}

static inline unsigned atomicInc(unsigned* at, unsigned most) {
  const unsigned before = *at;
  *at = before >= most ? 0 : before + 1;
  return before;
}

static inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

namespace emulation {

constexpr int kMostThreads = 1024, kWarp = 32;

// The threads of a block that wait for each other, each with a stack of its own.
class Block {
 public:
  enum State { ready, at_warp, at_block, done };

  // Runs all threads to their end; false if some wait for threads that never come.
  bool run(int count, const std::function<void()>& thread) {
    count_ = count;
    body_ = thread;
    for (int i = 0; i < count; ++i) {
      getcontext(&contexts_[i]);
      contexts_[i].uc_stack.ss_sp = stacks_.get() + i * kStackBytes;
      contexts_[i].uc_stack.ss_size = kStackBytes;
      contexts_[i].uc_link = &scheduler_;
      makecontext(&contexts_[i], enter, 0);
      states_[i] = ready;
    }
    do {
      for (int i = 0; i < count; ++i)
        if (states_[i] == ready) {
          threadIdx.x = i;
          swapcontext(&scheduler_, &contexts_[i]);
        }
    } while (wake());
    return std::all_of(states_, states_ + count, [](State state) { return state == done; });
  }

  void wait(State where) {
    const int own = threadIdx.x;
    states_[own] = where;
    swapcontext(&contexts_[own], &scheduler_);
  }

 private:
  static constexpr int kStackBytes = 1 << 16;

  static void enter();

  // Lets those go on who wait together: all of a warp, or all of the block.
  bool wake() {
    bool any = false;
    for (int first = 0; first < count_; first += kWarp)
      any |= wake(first, std::min(first + kWarp, count_), at_warp);
    return any || wake(0, count_, at_block);
  }

  bool wake(int begin, int end, State where) {
    bool any = false;
    for (int i = begin; i < end; ++i) {
      if (states_[i] != where && states_[i] != done) return false;
      any |= states_[i] == where;
    }
    for (int i = begin; i < end; ++i)
      if (states_[i] == where) states_[i] = ready;
    return any;
  }

  int count_ = 0;
  std::function<void()> body_;
  State states_[kMostThreads];
  ucontext_t scheduler_, contexts_[kMostThreads];
  std::unique_ptr<char[]> stacks_{new char[kMostThreads * kStackBytes]};
};

inline Block& block() {
  static Block only;
  return only;
}

inline void Block::enter() {
  block().body_();
  block().states_[threadIdx.x] = done;
}

}  // namespace emulation

static inline void __syncthreads() { emulation::block().wait(emulation::Block::at_block); }

static inline int __syncthreads_or(int own) {
  static int any;
  __syncthreads();
  any = 0;
  __syncthreads();
  any |= own;
  __syncthreads();
  return any != 0;
}

template <typename T>
static T __shfl_down_sync(unsigned, T own, int delta) {
  static T values[emulation::kMostThreads];
  const int lane = threadIdx.x % emulation::kWarp;
  values[threadIdx.x] = own;
  emulation::block().wait(emulation::Block::at_warp);
  const T other = lane + delta < emulation::kWarp ? values[threadIdx.x + delta] : own;
  emulation::block().wait(emulation::Block::at_warp);
  return other;
}

namespace emulation {

// Blocks in their order, or shuffled by a seed of the environment.
inline std::vector<unsigned> order(unsigned grid) {
  std::vector<unsigned> blocks(grid);
  std::iota(blocks.begin(), blocks.end(), 0u);
  if (const char* seed = std::getenv("EMULATION_BLOCK_ORDER"))
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(std::atoi(seed)));
  return blocks;
}

template <typename... Args, std::size_t... index>
long long launch(void (*kernel)(Args...), unsigned grid, unsigned block, void** args,
                 std::index_sequence<index...>) {
  misaligned = false;
  vectors = 0;
  const auto thread = [&] { kernel(*static_cast<Args*>(args[index])...); };
  for (const unsigned number : order(grid)) {
    blockIdx.x = number;
#ifdef EMULATION_THREADS_WAIT
    if (!emulation::block().run(block, thread)) return -2;
#else
    for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x) thread();
#endif
  }
  return misaligned ? -1 : vectors;
}

// As cuLaunchKernel: `args` points to each argument. Returns how many loads and stores were of 16
// bytes, -1 if an address was misaligned, or -2 if threads wait for others that never come.
template <typename... Args>
long long launch(void (*kernel)(Args...), unsigned grid, unsigned block, void** args) {
  return launch(kernel, grid, block, args, std::index_sequence_for<Args...>{});
}

// An array argument of an elementwise kernel; a scalar has strides of 0.
struct Strided {
  char* data;
  const long long* strides;

  template <typename T>
  T& at(long long index, int ndim, const long long* shape) const {
    char* place = data;
    for (int axis = ndim; axis-- > 0; index /= shape[axis]) place += index % shape[axis] * strides[axis];
    return *reinterpret_cast<T*>(place);
  }
};

}  // namespace emulation
