// Adam and AdamW: Kingma & Ba 2014, Loshchilov & Hutter 2017, AMSGrad of Reddi et al. 2018.
#pragma once

enum Amsgrad { kNoAmsgrad, kCorrected, kRaw };

template <typename T, int amsgrad>
struct Adam {
  static constexpr int slots = 3, used = amsgrad ? 3 : 2;

  T c1;           // 1 − β1
  T beta2;
  T c2;           // 1 − β2
  T step_size;    // η / (1 − β1ᵗ)
  T correction2;  // 1 − β2ᵗ
  T root2;        // sqrt(1 − β2ᵗ)
  T eps;

  __device__ void operator()(T& param, T g, T& m, T& v, T& v_max) const {
    m = m + c1 * (g - m);
    v = beta2 * v + (c2 * g) * g;

    T d;
    if (amsgrad == kCorrected) {
      v_max = maximum(v_max, v / correction2);
      d = sqrt(v_max) + eps;
    } else if (amsgrad == kRaw) {
      v_max = maximum(v_max, v);
      d = sqrt(v_max) / root2 + eps;
    } else {
      d = sqrt(v) / root2 + eps;
    }
    param = param - (step_size * m) / d;
  }
};
