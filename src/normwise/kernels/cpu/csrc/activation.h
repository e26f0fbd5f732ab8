// The activations that can be fused, as values and as factors of the incoming gradient.
#pragma once

#include <array>
#include <cmath>
#include <type_traits>

#include "kernels.h"
#include "lanes.h"

namespace normwise {

namespace {

// Everything below takes an element or lanes of them; constants are made lanes by adding them to V{}.

inline double exp_of(double x) { return std::exp(x); }
inline Lanes<double> exp_of(Lanes<double> x) {
  for (int i = 0; i < lane_count<double>; ++i) x[i] = std::exp(x[i]);
  return x;
}

// e^x to about 1 ulp in plain arithmetic, because a call into libm would keep the loop around it scalar. U: V's bits.
template <class U, class V> inline V float_exp(V x) {
  x = x < V{} - 87.0f ? V{} - 87.0f : x;  // comparisons in this direction let a NaN through
  x = x > V{} + 88.0f ? V{} + 88.0f : x;
  const V magic = V{} + 12582912.0f;  // 1.5 * 2^23: adding it leaves round(x / ln 2) in the low bits
  const V shifted = x * 1.44269504f + magic;
  const V n = shifted - magic;
  const V r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // ln 2 in two parts
  V p = r * (1.0f / 5040) + 1.0f / 720;  // Taylor to degree 7 on |r| <= ln(2) / 2: the first term left out is 5e-9
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r * r + r + 1.0f;
  return p * bit_cast<V>((bit_cast<U>(shifted) - 0x4b400000u + 127u) << 23);
}
inline float exp_of(float x) { return float_exp<uint32_t>(x); }
inline Lanes<float> exp_of(Lanes<float> x) { return float_exp<Lanes<uint32_t>>(x); }

template <Act kind, class V, class A> inline V activate(V z, A slope) {
  if constexpr (kind == Act::relu) return z < V{} ? V{} : z;
  if constexpr (kind == Act::leaky_relu) return z > V{} ? z : z * slope;
  if constexpr (kind == Act::silu) return z / (A(1) + exp_of(-z));
  return z;
}

// g * act'(z)
template <Act kind, class V, class A> inline V activate_grad(V g, V z, A slope) {
  if constexpr (kind == Act::relu) return z <= V{} ? V{} : g;
  if constexpr (kind == Act::leaky_relu) return z > V{} ? g : g * slope;
  if constexpr (kind == Act::silu) {
    const V s = A(1) / (A(1) + exp_of(-z));
    return g * s * (A(1) + z * (A(1) - s));
  }
  return g;
}

// Calls f with the centres, or with nothing where all are 0: what need not be subtracted need not be read. An element loses
// those that there are by (v - ... - center).
template <class A, class F> inline void with_center(const A* center, int64_t channels, const F& f) {
  if (all_zero(center, channels)) f();
  else f(center);
}

// Calls f with what normalizes an element, and the arrays that this takes besides it.
template <class T, class F> inline void with_affine(const Affine<acc_t<T>>& of, int64_t channels, const F& f) {
  with_center(of.center, channels, [&](auto... centers) {
    if constexpr (std::is_same_v<T, float>)
      if (of.rest) {
        const auto normalized = [](auto v, auto scale, auto rest, auto shift, auto... center) {
          v = (v - ... - center);
          return v * scale + (v * rest + shift);
        };
        return f(normalized, std::array{of.scale, of.rest, of.shift, centers...});
      }
    const auto normalized = [](auto v, auto scale, auto shift, auto... center) { return (v - ... - center) * scale + shift; };
    f(normalized, std::array{of.scale, of.shift, centers...});
  });
}

// Calls f with the activation as a compile-time constant.
template <class F> inline void with_activation(Act kind, const F& f) {
  switch (kind) {
    case Act::relu: return f(std::integral_constant<Act, Act::relu>{});
    case Act::leaky_relu: return f(std::integral_constant<Act, Act::leaky_relu>{});
    case Act::silu: return f(std::integral_constant<Act, Act::silu>{});
    default: return f(std::integral_constant<Act, Act::none>{});
  }
}

}  // namespace
}  // namespace normwise
