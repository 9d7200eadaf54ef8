// Lion, evolved sign momentum: Chen et al. 2023.
#pragma once

template <typename T>
struct Lion {
  static constexpr int slots = 1, used = 1;

  T beta1;
  T c1;     // 1 − β1
  T beta2;
  T c2;     // 1 − β2
  T lr;     // η

  __device__ void operator()(T& param, T g, T& m) const {
    const T c = beta1 * m + c1 * g;
    m = beta2 * m + c2 * g;
    param = param - lr * sign(c);
  }
};
