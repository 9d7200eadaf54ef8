// Adadelta: Zeiler 2012.
#pragma once

template <typename T>
struct Adadelta {
  static constexpr int slots = 2, used = 2;

  T rho;
  T c;    // 1 − ρ
  T eps;
  T lr;   // η

  __device__ void operator()(T& param, T g, T& v, T& a) const {
    v = rho * v + (c * g) * g;
    const T delta = (sqrt(a + eps) / sqrt(v + eps)) * g;
    a = rho * a + (c * delta) * delta;
    param = param - lr * delta;
  }
};
