// LARS: You, Gitman & Ginsburg, arXiv:1708.03888.
#pragma once

enum Momentum { kNoMomentum, kHeavyBall, kNesterov };

template <typename T, int momentum_kind, int adapts>
struct Lars {
  static constexpr int slots = 1, used = momentum_kind ? 1 : 0, sums = 2;
  static constexpr bool slots_move_first = false;

  T momentum;  // μ
  T damping;   // 1 − τ, but 1 at the first step of b, which is 0 then
  T l2;        // λ
  T trust;     // c
  T eps;       // ε
  T lr;        // η

  __device__ __forceinline__ void measure(T param, T g, T&, T* measured) const {
    measured[0] = param;
    measured[1] = g;
  }

  __device__ __forceinline__ T finish(const double* totals) const {
    const double param = sqrt(totals[0]), g = sqrt(totals[1]);
    if (!(adapts && param > 0 && g > 0)) return T(1);
    return T(double(trust) * param / ((g + double(l2) * param) + double(eps)));
  }

  __device__ __forceinline__ void update(T& param, T g, T& b, T ratio) const {
    T h = g;
    if (l2 != 0) h = h + l2 * param;
    h = h * ratio;
    if (momentum_kind) b = momentum * b + damping * h;
    if (momentum_kind == kHeavyBall) h = b;
    if (momentum_kind == kNesterov) h = h + momentum * b;
    param = param - lr * h;
  }
};
