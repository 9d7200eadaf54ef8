// RMSprop: Hinton 2012; centered: Graves 2013.
#pragma once

template <typename T, int centered, int momentum_on>
struct RMSprop {
  static constexpr int slots = 3, used = 1 + centered + momentum_on;

  T alpha;
  T c;         // 1 − α
  T eps;
  T inside;    // 1 to add ε ahead of the root, else 0
  T momentum;  // μ
  T lr;        // η

  __device__ void operator()(T& param, T g, T& v, T& first, T& second) const {
    T& h = first;
    T& b = centered ? second : first;

    v = alpha * v + (c * g) * g;
    T w = v;
    if (centered) {
      h = h + c * (g - h);
      w = maximum(v - h * h, T(0));
    }
    const T root = sqrt(inside != 0 ? w + eps : w);
    const T d = inside != 0 ? root : root + eps;
    T u = g / d;
    if (momentum_on) {
      b = momentum * b + u;
      u = lr * b;
    } else {
      u = (lr * g) / d;
    }
    param = param - u;
  }
};
