// LAMB: You et al., arXiv:1904.00962, with φ the identity.
#pragma once

template <typename T, int adapts>
struct Lamb {
  static constexpr int slots = 2, used = 2, sums = 2;
  static constexpr bool slots_move_first = true;

  T beta1, c1;                 // β1, and 1 − β1 or 1
  T beta2, c2;                 // β2, 1 − β2
  T correction1, correction2;  // 1 − β1ᵗ, 1 − β2ᵗ, or 1
  T eps, l2, lr;               // ε, λ, η

  __device__ __forceinline__ T direction(T param, T m, T v) const {
    T u = (m / correction1) / (sqrt(v / correction2) + eps);
    if (l2 != 0) u = u + l2 * param;
    return u;
  }

  __device__ __forceinline__ void measure(T param, T g, T& m, T& v, T* measured) const {
    m = beta1 * m + c1 * g;
    v = beta2 * v + (c2 * g) * g;
    measured[0] = param;
    measured[1] = direction(param, m, v);
  }

  __device__ __forceinline__ T finish(const double* totals) const {
    const double param = sqrt(totals[0]), u = sqrt(totals[1]);
    return adapts && param > 0 && u > 0 ? T(double(lr) * (param / u)) : lr;
  }

  __device__ __forceinline__ void update(T& param, T, T& m, T& v, T size) const {
    param = param - size * direction(param, m, v);
  }
};
