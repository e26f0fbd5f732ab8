// Conversion between elements and the type that is computed in, one by one and along a row.
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

// store: round to nearest even, as torch does. Written with selects only, so that loops over them vectorize.

inline void store(float* to, float x) { *to = x; }
inline void store(double* to, double x) { *to = x; }

// Rounded in the upper half of the result; the lower half is noise.
inline uint32_t bfloat16_bits(float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  return x != x ? 0x7fc00000u : u + 0x7fffu + ((u >> 16) & 1u);
}
inline void store(BFloat16* to, float x) { to->bits = static_cast<uint16_t>(bfloat16_bits(x) >> 16); }

inline void store(Half* to, float x) {
  const uint32_t u = bit_cast<uint32_t>(x), magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 lets the adder round at 2^-24, the spacing of half's subnormals.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t bits = magnitude < 0x38800000u ? subnormal : normal;
  bits = magnitude >= 0x477ff000u ? 0x7c00u : bits;
  bits = magnitude > 0x7f800000u ? 0x7e00u : bits;
  to->bits = static_cast<uint16_t>(bits | (u >> 16 & 0x8000u));
}

// to[i] = f(from[i]...) for i < n.
template <class T, class F, class... From> inline void map_row(int64_t n, F f, T* __restrict to, const From* __restrict... from) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(to + i, f(load(from[i])...));
}

inline float low_half(const BFloat16* p) { return bit_cast<float>(load_memory<uint32_t>(p) << 16); }
inline float high_half(const BFloat16* p) { return bit_cast<float>(load_memory<uint32_t>(p) & 0xffff0000u); }

// bfloat16 in pairs: a 32-bit word holds two, which a shift and a mask part and join faster than lanes are rearranged.
template <class F, class... From>
inline void map_row(int64_t n, F f, BFloat16* __restrict to, const From* __restrict... from) {
#pragma omp simd
  for (int64_t i = 0; i < n / 2; ++i) {
    const uint32_t low = bfloat16_bits(f(low_half(from + 2 * i)...)), high = bfloat16_bits(f(high_half(from + 2 * i)...));
    const uint32_t word = low >> 16 | (high & 0xffff0000u);
    std::memcpy(to + 2 * i, &word, sizeof(word));
  }
  if (n % 2) store(to + n - 1, f(load(from[n - 1])...));
}

}  // namespace
}  // namespace normwise
