// Writes the scalars of its step into its slots.
#pragma once

template <typename T>
struct Recorder {
  static constexpr int slots = 6, used = 6;

  T t;
  T first;
  T total;
  T product;

  __device__ void operator()(T& param, T g, T& own_t, T& own_first, T& own_total, T& own_product,
                             T&, T&) const {
    param = param - g;
    own_t = t;
    own_first = first;
    own_total = total;
    own_product = product;
  }
};
