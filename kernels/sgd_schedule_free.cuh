// SGD without a schedule: Defazio et al. 2024.
#pragma once

template <typename T>
struct SGDScheduleFree {
  static constexpr int slots = 1, used = 1;

  T weight;     // c
  T step_size;  // lr·(β1(1 − c) − 1)
  T lr;         // η, less during the warm-up

  __device__ void operator()(T& param, T g, T& z) const {
    param = param + weight * (z - param);
    param = param + step_size * g;
    z = z - lr * g;
  }
};
