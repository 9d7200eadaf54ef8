// RAdam, Adam with a rectified variance: Liu et al. 2019.
#pragma once

template <typename T>
struct RAdam {
  static constexpr int slots = 2, used = 2;

  T c1;             // 1 − β1
  T beta2;
  T c2;             // 1 − β2
  T correction1;    // 1 − β1ᵗ
  T root2;          // sqrt(1 − β2ᵗ)
  T eps;
  T lr;             // η
  T rectification;  // R; 0 while the variance is not to be trusted

  __device__ void operator()(T& param, T g, T& m, T& v) const {
    m = m + c1 * (g - m);
    v = beta2 * v + (c2 * g) * g;

    T u = (m / correction1) * lr;
    if (rectification != 0) u = (u * ((1 / (sqrt(v) + eps)) * root2)) * rectification;
    param = param - u;
  }
};
