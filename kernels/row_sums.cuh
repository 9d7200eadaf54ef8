// Sums of rows that stand for the same row, added in the order in which they appear.
#pragma once

constexpr int kRowThreads = 256;

// Each thread adds up one column of one segment: rows order[starts[s]] to order[starts[s + 1] - 1].
template <typename T>
__global__ void __launch_bounds__(kRowThreads)
    row_sums(const T* values, const long long* order, const long long* starts, T* sums,
             long long segments, long long width) {
  const long long index = (long long)(blockIdx.x) * kRowThreads + threadIdx.x;
  if (index >= segments * width) return;
  const long long segment = index / width, column = index % width;
  const long long end = starts[segment + 1];
  long long row = starts[segment];
  T sum = values[order[row] * width + column];
  while (++row < end) sum = sum + values[order[row] * width + column];
  sums[index] = sum;
}
