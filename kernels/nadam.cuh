// NAdam, Adam with Nesterov's momentum: Dozat 2016.
#pragma once

template <typename T>
struct NAdam {
  static constexpr int slots = 2, used = 2;

  T c1;             // 1 − β1
  T beta2;
  T c2;             // 1 − β2
  T correction2;    // 1 − β2ᵗ
  T eps;
  T gradient_size;  // η(1 − μ) / (1 − P)
  T moment_size;    // η·next / (1 − P·next), next being μ of t + 1

  __device__ void operator()(T& param, T g, T& m, T& v) const {
    m = m + c1 * (g - m);
    v = beta2 * v + (c2 * g) * g;
    const T d = sqrt(v / correction2) + eps;
    param = param - (gradient_size * g) / d;
    param = param - (moment_size * m) / d;
  }
};
