// Adagrad: Duchi, Hazan & Singer 2011.
#pragma once

template <typename T>
struct Adagrad {
  static constexpr int slots = 1, used = 1;

  T step_size;  // η / (1 + (t − 1)·lr_decay)
  T eps;

  __device__ void operator()(T& param, T g, T& s) const {
    s = s + g * g;
    const T d = sqrt(s) + eps;
    param = param - (step_size * g) / d;
  }
};
