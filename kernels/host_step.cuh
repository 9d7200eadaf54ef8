// The same rules on a CPU: a run of neighbouring elements, for one thread of the host.
#pragma once

#include <utility>

template <class Rule, typename T, std::size_t... k>
void host_step(const Row<Rule, T>& row, long long count, T* param, const T* grad, T* const* slots,
               std::index_sequence<k...>) {
  T* const slot[] = {k < Rule::used ? slots[k] : nullptr..., nullptr};
  const Frame<T> frame = row.frame;
  const Rule rule = row.rule;
  // The arrays of a parameter do not overlap, which the compiler cannot see.
#pragma GCC ivdep
  for (long long i = 0; i < count; ++i) {
    T spare[Rule::slots + 1] = {};
    T value = param[i], gradient = grad[i];
    frame(value, gradient);
    rule(value, gradient, (k < Rule::used ? slot[k][i] : spare[k])...);
    param[i] = value;
  }
}

template <class Rule, typename T>
void host_step(const Row<Rule, T>& row, long long count, T* param, const T* grad, T* const* slots) {
  host_step(row, count, param, grad, slots, std::make_index_sequence<Rule::slots>{});
}
