// A running average of models: Polyak & Juditsky 1992, stochastic weight averaging arXiv:1803.05407.
#pragma once

template <typename T>
struct Averaging {
  static constexpr int slots = 0, used = 0;

  T weight;   // of the model in a moving average, else 1
  T divisor;  // of the models in a mean, else 1

  // The gradient's place is that of the parameter, which is only read.
  __device__ void operator()(T& average, T param) const {
    if (weight == divisor)
      average = param;
    else
      average = average + weight * (param - average) / divisor;
  }
};
