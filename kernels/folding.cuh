// Sums of chunks folded by the very blocks that made them: the last one of a page folds the page, the
// last page of a tensor the tensor, and so on. Which block that is changes no bit: each node is added
// in the order of sums.cuh from what its parts left in memory.
#pragma once

// Adds the square of a number to a lane. That of anything but a double is exact in double, where to
// multiply and add in one operation rounds as to do so in two.
template <typename T>
__device__ __forceinline__ void add_square(double& sum, T x) {
  if constexpr (sizeof(x) == sizeof(double))
    sum += x * x;
  else
    sum = __fma_rn(double(x), double(x), sum);
}

// Folds what the lanes of a block have; the result is the first lane's.
template <typename S>
__device__ __forceinline__ S folded(S own) {
  __shared__ S lanes[kLanes];
  __syncthreads();  // until the first warp is done with what was folded before
  lanes[threadIdx.x] = own;
  __syncthreads();
  if (threadIdx.x >= 32) return own;
  const S* at = lanes + threadIdx.x;
  own = ((at[0] + at[128]) + (at[64] + at[192])) + ((at[32] + at[160]) + (at[96] + at[224]));
#pragma unroll
  for (int half = 16; half; half /= 2) own += __shfl_down_sync(~0u, own, half);
  return own;
}

// What the parts of a node add up to, for the first lane. They were written by other blocks, so that
// a multiprocessor's own cache may have older ones.
template <typename S>
__device__ __forceinline__ S gathered(const S* values, const Node& node) {
  S own = 0;
#pragma unroll 1
  for (int i = node.begin + int(threadIdx.x); i < node.end; i += kLanes) own += __ldcg(values + i);
  return folded(own);
}

// Says whether all others have been here before. Then whatever their first threads wrote ahead of it
// is there to be read: each releases it and acquires what those before have released. The counter
// begins anew with the last.
__device__ __forceinline__ bool is_last(unsigned* arrived, int awaited) {
  int last = 0;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(arrived, unsigned(awaited) - 1) == unsigned(awaited) - 1;
    __threadfence();
  }
  return __syncthreads_or(last);
}

// Leaves what the first thread has of a block's chunk, and folds each node that is complete with it.
// True if the last one is, of which the first thread then has the sums.
template <int kinds>
__device__ __forceinline__ bool fold_up(const Folding& folding, double (&sum)[kinds],
                                        long long& count) {
  int place = int(folding.first + blockIdx.x);
#pragma unroll 1
  for (;;) {
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < kinds; ++k) folding.sums[k * folding.stride + place] = sum[k];
      if (folding.counts) folding.counts[place] = count;
    }
    place = folding.nodes[place].parent;
    if (place < 0) return true;
    const Node node = folding.nodes[place];
    if (node.end - node.begin == 1) continue;
    if (!is_last(folding.arrived + place, node.awaited)) return false;
#pragma unroll
    for (int k = 0; k < kinds; ++k) sum[k] = gathered(folding.sums + k * folding.stride, node);
    if (folding.counts) count = gathered(folding.counts, node);
  }
}

// Folds what the lanes of a block have of each kind: to the sums of its chunk, and of whatever is
// complete with it.
template <int kinds>
__device__ __forceinline__ void put_sums(const double (&lane)[kinds], const Folding& folding) {
  double sum[kinds];
#pragma unroll
  for (int k = 0; k < kinds; ++k) sum[k] = folded(lane[k]);
  long long none = 0;
  fold_up(folding, sum, none);
}

// Takes the sums of the tensor that the chunk of a block is a part of.
template <int kinds>
__device__ __forceinline__ void get_totals(double (&total)[kinds], const Folding& folding,
                                           int block) {
  const int page = folding.nodes[folding.first + block].parent;
  const double* const sums = folding.sums + folding.nodes[page].parent;
#pragma unroll
  for (int k = 0; k < kinds; ++k) total[k] = sums[k * folding.stride];
}

// Lanes take their neighbours in the order of sums.cuh, wherever arrays begin.
template <class Own>
__device__ __forceinline__ void in_order(const Own& own, int count, unsigned aligned) {
  constexpr int vector = Own::vector < kNeighbours ? Own::vector : kNeighbours;
#pragma unroll 1
  for (int i = int(threadIdx.x) * kNeighbours; i < count; i += kRound) {
    if (aligned && i + kNeighbours <= count) {
#pragma unroll
      for (int j = 0; j < kNeighbours; j += vector) own.template update<vector>(i + j, aligned);
    } else {
#pragma unroll 1
      for (int j = i; j < min(i + kNeighbours, count); ++j) own.template update<1>(j, aligned);
    }
  }
}
