// Element types and their conversion to the type that sums are kept in.
//
// Included by the instruction-set specific sources, hence the unnamed namespace around the conversions: each source must
// keep its own copy, or the linker could hand AVX-512 code to a processor without it.
#pragma once

#include <cstdint>
#include <cstring>

namespace normwise {

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

template <class T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <class T> using acc_t = typename Accumulator<T>::type;

namespace {

template <class To, class From> inline To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
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

inline void store(BFloat16* to, float x) {
  const uint32_t u = bit_cast<uint32_t>(x);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  to->bits = static_cast<uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

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

}  // namespace
}  // namespace normwise
