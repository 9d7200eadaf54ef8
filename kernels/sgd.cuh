// Stochastic gradient descent with momentum: Polyak 1964, Nesterov 1983 as in Sutskever et al. 2013.
#pragma once

enum Momentum { kNoMomentum, kHeavyBall, kNesterov };

template <typename T, int momentum_kind>
struct SGD {
  static constexpr int slots = 1, used = momentum_kind ? 1 : 0;

  T momentum;  // μ
  T damping;   // 1 − τ; usually 1 at the first step of b, which is 0 then
  T lr;        // η

  __device__ void operator()(T& param, T g, T& b) const {
    if (momentum_kind) b = momentum * b + damping * g;
    if (momentum_kind == kHeavyBall) g = b;
    if (momentum_kind == kNesterov) g = g + momentum * b;
    param = param - lr * g;
  }
};
