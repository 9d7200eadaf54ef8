// What kernels use of CUDA C++, for a host compiler: one thread runs after the other.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __grid_constant__

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

namespace emulation {

template <typename... Args, std::size_t... index>
long long launch(void (*kernel)(Args...), unsigned grid, unsigned block, void** args,
                 std::index_sequence<index...>) {
  misaligned = false;
  vectors = 0;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
      kernel(*static_cast<Args*>(args[index])...);
  return misaligned ? -1 : vectors;
}

// As cuLaunchKernel: `args` points to each argument. Returns how many loads and stores were of 16
// bytes, or -1 if an address was misaligned.
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
