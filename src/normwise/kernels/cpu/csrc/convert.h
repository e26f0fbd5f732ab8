// Conversion between elements and the type that is computed in. What takes an A or a V takes one value or lanes of them.
//
// Only for the instruction-set specific sources, hence the unnamed namespace: each must keep its own copy, or the linker
// could hand AVX-512 code to a processor without it.
#pragma once

#include <cstring>

#include "dtypes.h"

namespace normwise {
namespace {

template <class To, class From> inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

template <class V> inline V load_memory(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

inline float load(float x) { return x; }
inline double load(double x) { return x; }
inline float load(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float load(Half x) {
  // Moving the bits into float's fields leaves the exponent 112 too small; the product also normalizes subnormals.
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
  const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN keep the largest exponent
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | (x.bits & 0x8000u) << 16);
}

// Rounding to nearest even, as torch does; selects only, so that it works on lanes.

// In the upper half of the result; the lower half is noise. U: V's bits.
template <class U, class V> inline U bfloat16_bits(V x) {
  const U u = bit_cast<U>(x);
  return x != x ? U{} + 0x7fc00000u : u + 0x7fffu + ((u >> 16) & 1u);
}

// In the lower half of the result.
template <class U, class V> inline U half_bits(V x) {
  const U u = bit_cast<U>(x), magnitude = u & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 lets the adder round at 2^-24, the spacing of half's subnormals.
  const U subnormal = bit_cast<U>(bit_cast<V>(magnitude) + 0.5f) - 0x3f000000u;
  U bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x477ff000u ? U{} + 0x7c00u : bits;
  bits = magnitude > 0x7f800000u ? U{} + 0x7e00u : bits;
  return bits | (u >> 16 & 0x8000u);
}

inline void store(float* to, float x) { *to = x; }
inline void store(double* to, double x) { *to = x; }
inline void store(BFloat16* to, float x) { to->bits = static_cast<uint16_t>(bfloat16_bits<uint32_t>(x) >> 16); }
inline void store(Half* to, float x) { to->bits = static_cast<uint16_t>(half_bits<uint32_t>(x)); }

}  // namespace
}  // namespace normwise
