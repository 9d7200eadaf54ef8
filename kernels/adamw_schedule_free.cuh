// AdamW without a schedule: Defazio et al. 2024.
#pragma once

template <typename T>
struct AdamWScheduleFree {
  static constexpr int slots = 2, used = 2;

  T beta2;
  T c2;           // 1 − β2
  T correction2;  // 1 − β2ᵗ
  T eps;
  T decay;        // λ
  T weight;       // c
  T step_size;    // lr·(β1(1 − c) − 1)
  T lr;           // η, less during the warm-up

  __device__ void operator()(T& param, T g, T& z, T& v) const {
    v = beta2 * v + (c2 * g) * g;
    T u = g / (sqrt(v / correction2) + eps);
    if (decay != 0) u = u + decay * param;
    param = param + weight * (z - param);
    param = param + step_size * u;
    z = z - lr * u;
  }
};
