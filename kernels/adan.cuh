// Adan, adaptive Nesterov momentum: Xie et al. 2022.
#pragma once

template <typename T>
struct Adan {
  static constexpr int slots = 4, used = 4;

  T later;            // 0 at the first step, which has no gradient before it
  T c1;               // 1 − β1
  T beta2;
  T c2;               // 1 − β2
  T beta3;
  T c3;               // 1 − β3
  T root3;            // sqrt(1 − β3ᵗ)
  T eps;
  T moment_size;      // η / (1 − β1ᵗ)
  T difference_size;  // ηβ2 / (1 − β2ᵗ)
  T shrink;           // 1 + ηλ

  __device__ void operator()(T& param, T g, T& m, T& q, T& v, T& previous) const {
    const T delta = later != 0 ? g - previous : T(0);
    m = m + c1 * (g - m);
    q = q + c2 * (delta - q);
    const T n = beta2 * delta + g;
    v = beta3 * v + (c3 * n) * n;
    const T d = sqrt(v) / root3 + eps;
    previous = g;
    param = param - (moment_size * m) / d;
    param = param - (difference_size * q) / d;
    param = param / shrink;
  }
};
