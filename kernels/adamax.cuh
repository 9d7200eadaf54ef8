// Adamax, Adam by the infinity norm: Kingma & Ba 2014.
#pragma once

template <typename T>
struct Adamax {
  static constexpr int slots = 2, used = 2;

  T c1;         // 1 − β1
  T beta2;
  T eps;
  T step_size;  // η / (1 − β1ᵗ)

  __device__ void operator()(T& param, T g, T& m, T& n) const {
    m = m + c1 * (g - m);
    const T size = g > 0 ? g : 0 - g;  // the latter of −0 too
    n = maximum(beta2 * n, size + eps);
    param = param - (step_size * m) / n;
  }
};
