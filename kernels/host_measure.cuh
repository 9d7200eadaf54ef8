// Sums of squares of chunks on a CPU, by threads of the host; sums.cuh has their order.
//
// The struct members stand in the same order in lucid_gpu/execution/cpu_sums.py.
#pragma once

struct HostMeasured {
  const Chunk* chunks;
  const void* const* grads;  // of each tensor; null where there is none
  const int* layouts;        // of each tensor: 0 if contiguous, else the number of its axes from 1
  const int* types;          // of each tensor
  const Axes* axes;
  double* sums;  // of each chunk
  long long* counts;
  long long count;  // of chunks
  long long next;   // the first chunk that no thread has taken
};

constexpr int kShare = 32;  // chunks that a thread takes at a time

template <typename G>
void measure(const G* from, int count, double& sum, long long& nonfinite) {
  double lanes[kLanes] = {};
  for (int round = 0; round < count; round += kRound)
    for (int j = 0; j < kNeighbours; ++j) {
      const int left = count - round - j;
      const int some = left < kRound ? (left + kNeighbours - 1) / kNeighbours : kLanes;
      for (int lane = 0; lane < some; ++lane) {
        const double x = in_registers(from[round + kNeighbours * lane + j]);
        lanes[lane] += x * x;
      }
    }
  for (int half = kLanes / 2; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  sum = lanes[0];
  nonfinite = 0;
  if (sum - sum == 0) return;  // as it is not if an element is not finite
  for (int i = 0; i < count; ++i) {
    const auto x = in_registers(from[i]);
    nonfinite += !(x - x == 0);
  }
}

template <typename G>
void measure(const HostMeasured& argument, const Chunk& chunk, long long place) {
  const void* grad = argument.grads[chunk.tensor];
  const int layout = argument.layouts[chunk.tensor];
  double& sum = argument.sums[place];
  long long& count = argument.counts[place];
  if (!layout)
    return measure(static_cast<const G*>(grad) + chunk.start, chunk.count, sum, count);
  G elements[kChunk];
  const Axes& axes = argument.axes[layout - 1];
  for (int i = 0; i < chunk.count; ++i)
    memcpy(elements + i, static_cast<const char*>(grad) + axes.offset(chunk.start + i), sizeof(G));
  measure(elements, chunk.count, sum, count);
}

extern "C" void measure_chunks(HostMeasured* argument) {
  for (;;) {
    const long long first = __atomic_fetch_add(&argument->next, kShare, __ATOMIC_RELAXED);
    if (first >= argument->count) return;
    const long long end = first + kShare < argument->count ? first + kShare : argument->count;
    for (long long place = first; place < end; ++place) {
      const Chunk& chunk = argument->chunks[place];
      if (!argument->grads[chunk.tensor]) {
        argument->sums[place] = 0;
        argument->counts[place] = 0;
        continue;
      }
      switch (argument->types[chunk.tensor]) {
        case 0: measure<float>(*argument, chunk, place); break;
        case 1: measure<double>(*argument, chunk, place); break;
        case 2: measure<Float16>(*argument, chunk, place); break;
        default: measure<BFloat16>(*argument, chunk, place);
      }
    }
  }
}
