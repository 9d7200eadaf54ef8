// Rprop, resilient backpropagation: Riedmiller & Braun 1993, in the variant iRprop⁻.
#pragma once

template <typename T>
struct Rprop {
  static constexpr int slots = 2, used = 2;

  T shorter;  // η⁻
  T longer;   // η⁺
  T least;
  T most;

  __device__ void operator()(T& param, T g, T& previous, T& size) const {
    const T x = g * previous;
    size = size * (x > 0 ? longer : x < 0 ? shorter : T(1));
    size = minimum(maximum(size, least), most);
    previous = x < 0 ? T(0) : g;
    param = param - sign(previous) * size;
  }
};
