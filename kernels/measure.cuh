// Sums of squares and counts of non-finite elements, on a GPU; sums.cuh has their order.
//
// The struct members stand in the same order in lucid_gpu/execution/cuda_sums.py.
#pragma once

struct Measured {
  const Chunk* chunks;
  const void* const* grads;  // of each tensor; null where there is none
  const int* layouts;        // of each tensor: 0 if contiguous, else the number of its axes from 1
  const Axes* axes;
  Folding folding;
  Judged judged;
};

struct Concluded {
  const double* sums;       // of each tensor; null if they were not measured
  const long long* counts;  // of each tensor, or null
  long long tensors;
  double* total;
  long long* total_count;
  Judged judged;
};

struct Gathered {
  const double* sums;       // of each device, of each tensor
  const long long* counts;  // likewise
  const int* rows;          // which device has each tensor
  long long tensors;
  double* to_sums;
  long long* to_counts;
};

// A lane's part.
struct Lane {
  double sum = 0;
  int nonfinite = 0;

  template <typename G>
  __device__ __forceinline__ void add(G element) {
    const auto x = in_registers(element);
    nonfinite += !(x - x == 0);
    add_square(sum, x);
  }
};

template <typename G>
struct Neighbours {
  G at[kNeighbours];

  // From an address that is a multiple of their size, or of 16 bytes.
  __device__ __forceinline__ void load(const G* from) {
    if constexpr (sizeof(at) == 8) {
      const uint2 word = __ldg(reinterpret_cast<const uint2*>(from));
      memcpy(at, &word, sizeof(at));
    } else {
#pragma unroll
      for (unsigned half = 0; half < sizeof(at) / 16; ++half) {
        const uint4 word = __ldg(reinterpret_cast<const uint4*>(from) + half);
        memcpy(reinterpret_cast<char*>(at) + 16 * half, &word, sizeof(word));
      }
    }
  }
};

// A lane's elements of a chunk, all under way before the first is waited for; those behind the end of
// the chunk are 0, which changes no sum.
template <typename G>
__device__ __forceinline__ void add(Lane& lane, const G* from, int count) {
  constexpr unsigned vector = sizeof(G) * kNeighbours < 16 ? sizeof(G) * kNeighbours : 16;
  const bool aligned = reinterpret_cast<unsigned long long>(from) % vector == 0;
  Neighbours<G> of_round[kRounds] = {};
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int first = round * kRound + int(threadIdx.x) * kNeighbours;
    if (aligned && first + kNeighbours <= count) {
      of_round[round].load(from + first);
    } else {
#pragma unroll
      for (int j = 0; j < kNeighbours; ++j)
        if (first + j < count) of_round[round].at[j] = from[first + j];
    }
  }
#pragma unroll
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int j = 0; j < kNeighbours; ++j) lane.add(of_round[round].at[j]);
}

// The same for a tensor that is walked along its axes.
template <typename G>
__device__ __forceinline__ void add(Lane& lane, const char* from, const Axes& axes,
                                    const Chunk& chunk) {
#pragma unroll 1
  for (int i = 0; i < kRounds * kNeighbours; ++i) {
    const int element = i / kNeighbours * kRound + int(threadIdx.x) * kNeighbours + i % kNeighbours;
    if (element < chunk.count)
      lane.add(*reinterpret_cast<const G*>(from + axes.offset(chunk.start + element)));
  }
}

// One block measures one chunk of gradients that are stored as G. The last of all blocks judges. Left
// to itself the compiler spills a register to hold more than four blocks on a multiprocessor.
template <typename G>
__global__ void __launch_bounds__(kLanes, 4) measure(const __grid_constant__ Measured argument) {
  const Chunk chunk = argument.chunks[blockIdx.x];
  const void* grad = argument.grads[chunk.tensor];
  const int layout = argument.layouts[chunk.tensor];
  Lane lane;
  if (grad && layout)
    add<G>(lane, static_cast<const char*>(grad), argument.axes[layout - 1], chunk);
  else if (grad)
    add(lane, static_cast<const G*>(grad) + chunk.start, chunk.count);
  double sum[] = {folded(lane.sum)};
  long long count = __syncthreads_or(lane.nonfinite) ? folded(lane.nonfinite) : 0;
  if (fold_up(argument.folding, sum, count) && threadIdx.x == 0)
    judge(argument.judged, sum[0], count);
}

// One block folds the sums of tensors, where no last block does: of several devices, or of none; or
// it only judges, without sums.
__global__ void __launch_bounds__(kLanes) conclude(const __grid_constant__ Concluded argument) {
  if (!argument.sums) {
    if (threadIdx.x == 0) judge(argument.judged, nan(""), -1);
    return;
  }
  const Node all{0, int(argument.tensors), 0, -1};
  const double total = gathered(argument.sums, all);
  const long long count = argument.counts ? gathered(argument.counts, all) : 0;
  if (threadIdx.x != 0) return;
  *argument.total = total;
  if (argument.total_count) *argument.total_count = count;
  judge(argument.judged, total, count);
}

// One block puts what several devices have measured in the order of the tensors.
__global__ void __launch_bounds__(kLanes) gather(const __grid_constant__ Gathered argument) {
  for (long long i = threadIdx.x; i < argument.tensors; i += kLanes) {
    const long long from = argument.rows[i] * argument.tensors + i;
    argument.to_sums[i] = argument.sums[from];
    argument.to_counts[i] = argument.counts[from];
  }
}
