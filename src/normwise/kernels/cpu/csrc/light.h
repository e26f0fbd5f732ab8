// Arithmetic that the light work of all methods shares.
//
// In an unnamed namespace, as the instruction-set specific sources must each keep their own copy.
#pragma once

#include "kernels.h"

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

// Writes what normalizes channel i by its mean, with `s` the weight over the deviation. About 0 where the mean is within four
// deviations of it, or the variance overflowed: then there is nothing to subtract, and nothing to round. Equal values, which have no variance, come out as
// the bias to the last bit. What rounding takes from the center goes into the shift.
template <class A> inline void normalize(double mean, double var, double s, A bias, const ChannelAffine<A>& to, int64_t i) {
  const A center = static_cast<A>(mean * mean < 16 * var || s == 0 ? 0.0 : mean), scale = static_cast<A>(s);
  to.center[i] = center;
  to.scale[i] = scale;
  to.rest[i] = static_cast<A>(s - static_cast<double>(scale));
  to.shift[i] = static_cast<A>(bias + (static_cast<double>(center) - mean) * s);
}

}  // namespace
}  // namespace normwise
