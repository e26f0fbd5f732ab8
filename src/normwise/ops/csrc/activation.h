// The activations that can be fused, as values and as factors of the incoming gradient.
#pragma once

#include <cmath>
#include <type_traits>

#include "dtypes.h"

namespace normwise {

enum class Act : int64_t { none = 0, relu = 1, leaky_relu = 2, silu = 3 };  // the codes of native.py's ACTIVATIONS

struct Activation {
  Act kind;
  double slope;  // of leaky_relu
};

namespace {

inline double exp_of(double x) { return std::exp(x); }

// e^x to about 1 ulp in plain arithmetic, because a call into libm would keep the loop around it scalar.
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;  // comparisons in this direction let a NaN through
  x = x > 88.0f ? 88.0f : x;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x / ln 2) in the low bits
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  float p = 1.0f / 5040;  // Taylor to degree 7 on |r| <= ln(2) / 2: the first term left out is 5e-9
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * bit_cast<float>((bit_cast<uint32_t>(shifted) - 0x4b400000u + 127u) << 23);
}

template <Act kind, class A> inline A activate(A z, A slope) {
  if constexpr (kind == Act::relu) return z < 0 ? A(0) : z;
  if constexpr (kind == Act::leaky_relu) return z > 0 ? z : z * slope;
  if constexpr (kind == Act::silu) return z / (1 + exp_of(-z));
  return z;
}

// g * act'(z)
template <Act kind, class A> inline A activate_grad(A g, A z, A slope) {
  if constexpr (kind == Act::relu) return z <= 0 ? A(0) : g;
  if constexpr (kind == Act::leaky_relu) return z > 0 ? g : g * slope;
  if constexpr (kind == Act::silu) {
    const A s = 1 / (1 + exp_of(-z));
    return g * s * (1 + z * (1 - s));
  }
  return g;
}

// Calls f with the activation as a compile-time constant.
template <class F> inline void with_activation(Act kind, F f) {
  switch (kind) {
    case Act::relu: return f(std::integral_constant<Act, Act::relu>{});
    case Act::leaky_relu: return f(std::integral_constant<Act, Act::leaky_relu>{});
    case Act::silu: return f(std::integral_constant<Act, Act::silu>{});
    default: return f(std::integral_constant<Act, Act::none>{});
  }
}

}  // namespace
}  // namespace normwise
