// Arithmetic that the light work of all methods shares.
//
// In an unnamed namespace, as the instruction-set specific sources must each keep their own copy.
#pragma once

#include <cstdint>

namespace normwise {
namespace {

// The sum of term(i) over i < n, in several chains: one would wait for the adder most of the time.
template <class F> inline double total(int64_t n, F term) {
  double chains[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; ++k) chains[k] += term(i + k);
  for (; i < n; ++i) chains[0] += term(i);
  return ((chains[0] + chains[1]) + (chains[2] + chains[3])) + ((chains[4] + chains[5]) + (chains[6] + chains[7]));
}

// What normalizes by a mean, with `s` the weight over the deviation, about a center: y = (x - center) * scale + shift. What
// rounding takes from center and scale goes into the shift.
template <class A> inline void normalizing_about(double about, double mean, double s, A bias, A& center, A& scale, A& shift) {
  center = static_cast<A>(about);
  scale = static_cast<A>(s);
  shift = static_cast<A>(bias + (static_cast<double>(center) - mean) * static_cast<double>(scale));
}

// About 0 where the mean is within a deviation of it, which rounds once less. Equal values, which have no variance, come out
// as the bias to the last bit.
template <class A> inline void normalizing(double mean, double var, double s, A bias, A& center, A& scale, A& shift) {
  normalizing_about(mean * mean < var ? 0.0 : mean, mean, s, bias, center, scale, shift);
}

}  // namespace
}  // namespace normwise
