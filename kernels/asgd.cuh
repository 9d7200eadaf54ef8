// Averaged SGD: Polyak & Juditsky 1992, with the learning rate of Bottou.
#pragma once

template <typename T>
struct ASGD {
  static constexpr int slots = 1, used = 1;

  T keep;  // 1 − lambd·η_t
  T lr;    // η_t
  T mu;    // weight of θ in the average

  __device__ void operator()(T& param, T g, T& average) const {
    param = param * keep;
    param = param - lr * g;
    if (mu == 1)
      average = param;
    else
      average = average + (param - average) * mu;
  }
};
