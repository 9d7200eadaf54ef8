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

using std::memcpy;
using std::min;
using std::sqrt;

template <typename T>
static T __ldcs(const T* from) {
  misaligned |= reinterpret_cast<std::uintptr_t>(from) % sizeof(T) != 0;
  T value;
  memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
static void __stcs(T* to, T value) {
  misaligned |= reinterpret_cast<std::uintptr_t>(to) % sizeof(T) != 0;
  memcpy(to, &value, sizeof(T));
}

namespace emulation {

template <typename... Args, std::size_t... index>
bool launch(void (*kernel)(Args...), unsigned grid, unsigned block, void** args,
            std::index_sequence<index...>) {
  misaligned = false;
  for (blockIdx.x = 0; blockIdx.x < grid; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < block; ++threadIdx.x)
      kernel(*static_cast<Args*>(args[index])...);
  return misaligned;
}

// As cuLaunchKernel: `args` points to each argument. Tells whether an address was misaligned.
template <typename... Args>
bool launch(void (*kernel)(Args...), unsigned grid, unsigned block, void** args) {
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
