// A vector register as a type (the vector extension of GCC and Clang, for every architecture they compile for).
//
// Loops along a row are written with lanes. Reordering a sum is not the compiler's to decide, and -ffast-math, which would
// allow it, would also drop NaN and infinity; and the end of a row, which is most of a short one, is done in one more step.
#pragma once

#include <type_traits>
#include <utility>

#include "convert.h"

namespace normwise {
namespace {

template <class A, int bytes = NORMWISE_VECTOR_BYTES> struct VectorOf;
template <int bytes> struct VectorOf<float, bytes> { typedef float type __attribute__((vector_size(bytes))); };
template <int bytes> struct VectorOf<double, bytes> { typedef double type __attribute__((vector_size(bytes))); };
template <int bytes> struct VectorOf<uint16_t, bytes> { typedef uint16_t type __attribute__((vector_size(bytes))); };
template <int bytes> struct VectorOf<uint32_t, bytes> { typedef uint32_t type __attribute__((vector_size(bytes))); };
template <int bytes> struct VectorOf<int32_t, bytes> { typedef int32_t type __attribute__((vector_size(bytes))); };
template <int bytes> struct VectorOf<int64_t, bytes> { typedef int64_t type __attribute__((vector_size(bytes))); };

template <class A> using Lanes = typename VectorOf<A>::type;
template <class A> using HalfLanes = typename VectorOf<A, NORMWISE_VECTOR_BYTES / 2>::type;
template <class A> constexpr int lane_count = NORMWISE_VECTOR_BYTES / sizeof(A);

// A register from a long run of memory, which need not begin where a line of it does. In two loads where a register is a whole
// line: one that takes parts of two lines makes some processors read at half the speed, and rows of 49 or 196 elements are
// full of them. The second goes into the upper half as it is loaded, with no shuffle.
template <class V> inline V load_run(const void* p) {
#if NORMWISE_VECTOR_BYTES == 64
  const auto* half = static_cast<const __m256i*>(p);
  return (V)_mm512_mask_broadcast_i32x8(_mm512_castsi256_si512(_mm256_loadu_si256(half)), 0xff00, _mm256_loadu_si256(half + 1));
#else
  return load_memory<V>(p);
#endif
}

// Loads as many elements as the second argument, which only names the type, has lanes.
inline Lanes<float> load_as(const float* p, Lanes<float>) { return load_run<Lanes<float>>(p); }
inline Lanes<double> load_as(const double* p, Lanes<double>) { return load_run<Lanes<double>>(p); }

inline Lanes<uint32_t> widen(const void* p) {
#if NORMWISE_VECTOR_BYTES == 64  // one instruction, where the compiler would take three
  return (Lanes<uint32_t>)_mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(p)));
#else
  return __builtin_convertvector(load_memory<HalfLanes<uint16_t>>(p), Lanes<uint32_t>);
#endif
}

inline Lanes<float> load_as(const BFloat16* p, Lanes<float>) { return bit_cast<Lanes<float>>(widen(p) << 16); }

inline Lanes<float> load_as(const Half* p, Lanes<float>) {  // as load(Half)
  const Lanes<uint32_t> h = widen(p), magnitude = (h & 0x7fffu) << 13;
  const Lanes<float> scaled = bit_cast<Lanes<float>>(magnitude) * 0x1p112f;
  const Lanes<uint32_t> special = magnitude >= 0x0f800000u ? Lanes<uint32_t>{} + 0x7f800000u : Lanes<uint32_t>{};
  return bit_cast<Lanes<float>>(bit_cast<Lanes<uint32_t>>(scaled) | special | (h & 0x8000u) << 16);
}

// Two registers' worth of elements, in any order, but in the same for equal T.
template <class V> struct Two { V first, second; };
template <class T> inline Two<Lanes<acc_t<T>>> load_two(const T* p) {
  using V = Lanes<acc_t<T>>;
  return {load_as(p, V{}), load_as(p + lane_count<acc_t<T>>, V{})};
}
inline Two<Lanes<float>> halves(Lanes<uint32_t> words) {  // even elements, odd elements
  return {bit_cast<Lanes<float>>(words << 16), bit_cast<Lanes<float>>(words & 0xffff0000u)};
}
inline Two<Lanes<float>> load_two(const BFloat16* p) { return halves(load_memory<Lanes<uint32_t>>(p)); }

// Stores a register; past the caches if asked, and then `to` is a multiple of its size. That saves reading a line of memory before
// it is overwritten, and ends with finish_streaming.
template <class V> inline void put_memory(void* to, V v, bool streams) {
  if (!streams) return void(std::memcpy(to, &v, sizeof(v)));
#if NORMWISE_VECTOR_BYTES == 64
  _mm512_stream_si512(static_cast<__m512i*>(to), (__m512i)v);
#elif NORMWISE_VECTOR_BYTES == 32
  _mm256_stream_si256(static_cast<__m256i*>(to), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(static_cast<__m128i*>(to), (__m128i)v);
#else
  std::memcpy(to, &v, sizeof(v));
#endif
}
// What went past the caches is in no order with other stores until then.
inline void finish_streaming() {
#ifdef __SSE2__
  _mm_sfence();
#endif
}

inline void store_as(float* to, Lanes<float> v, bool streams = false) { put_memory(to, v, streams); }
inline void store_as(double* to, Lanes<double> v, bool streams = false) { put_memory(to, v, streams); }
inline void narrow(void* to, Lanes<uint32_t> v) {
#if NORMWISE_VECTOR_BYTES == 64
  _mm256_storeu_si256(static_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)v));
#else
  const auto low = __builtin_convertvector(v, HalfLanes<uint16_t>);
  std::memcpy(to, &low, sizeof(low));
#endif
}
inline void store_as(BFloat16* to, Lanes<float> v, bool = false) { narrow(to, bfloat16_bits<Lanes<uint32_t>>(v) >> 16); }
inline void store_as(Half* to, Lanes<float> v, bool = false) { narrow(to, half_bits<Lanes<uint32_t>>(v)); }

// In the order of load_two.
template <class T> inline void store_two(T* to, Lanes<acc_t<T>> first, Lanes<acc_t<T>> second, bool streams = false) {
  store_as(to, first, streams);
  store_as(to + lane_count<acc_t<T>>, second, streams);
}
inline void store_two(BFloat16* to, Lanes<float> even, Lanes<float> odd, bool streams = false) {
  using U = Lanes<uint32_t>;
  put_memory(to, bfloat16_bits<U>(even) >> 16 | (bfloat16_bits<U>(odd) & 0xffff0000u), streams);
}

// The first `count` lanes, 0 < count < all, of which only those are read or written: a second store to the same place, or
// one beyond a row's end, makes the row that follows wait.
#if NORMWISE_VECTOR_BYTES == 64
inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline Lanes<float> load_first(const float* p, int64_t count, Lanes<float>) { return (Lanes<float>)_mm512_maskz_loadu_ps(first_lanes(count), p); }
inline Lanes<double> load_first(const double* p, int64_t count, Lanes<double>) {
  return (Lanes<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>(first_lanes(count)), p);
}
template <class T> inline Lanes<float> load_first(const T* p, int64_t count, Lanes<float> v) {
  const __m256i bits = _mm256_maskz_loadu_epi16(first_lanes(count), p);
  return load_as(reinterpret_cast<const T*>(&bits), v);
}
inline void store_first(float* to, int64_t count, Lanes<float> v) { _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)v); }
inline void store_first(double* to, int64_t count, Lanes<double> v) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>(first_lanes(count)), (__m512d)v);
}
template <class T> inline void store_first(T* to, int64_t count, Lanes<float> v) {
  __m256i bits;
  store_as(reinterpret_cast<T*>(&bits), v);
  _mm256_mask_storeu_epi16(to, first_lanes(count), bits);
}
// The same of two registers, 0 < count < 32.
inline __mmask32 first_words(int64_t count) { return (__mmask32{1} << count) - 1; }
inline Two<Lanes<float>> load_two_first(const BFloat16* p, int64_t count) {
  return halves((Lanes<uint32_t>)_mm512_maskz_loadu_epi16(first_words(count), p));
}
inline void store_two_first(BFloat16* to, int64_t count, Lanes<float> even, Lanes<float> odd) {
  BFloat16 both[2 * lane_count<float>];
  store_two(both, even, odd);
  _mm512_mask_storeu_epi16(to, first_words(count), load_memory<__m512i>(both));
}
#else
template <class T, class V> inline V load_first(const T* p, int64_t count, V v) {
  T part[lane_count<acc_t<T>>] = {};
  for (int64_t i = 0; i < count; ++i) part[i] = p[i];
  return load_as(part, v);
}
template <class T, class V> inline void store_first(T* to, int64_t count, V v) {
  for (int64_t i = 0; i < count; ++i) store(to + i, acc_t<T>(v[i]));
}
#endif

// How many elements are written at a time: two registers of bfloat16, a register of others.
template <class T> constexpr int64_t step_size = (std::is_same_v<T, BFloat16> ? 2 : 1) * lane_count<acc_t<T>>;

// to[i] = f(from[i]...) for i < n < step_size; f takes lanes, and `to` is other memory.
template <class T, class F, class... From>
inline void map_short(int64_t n, F f, T* __restrict to, const From* __restrict... from) {
  using V = Lanes<acc_t<T>>;
  constexpr int64_t W = lane_count<acc_t<T>>;
  int64_t i = 0;
#if NORMWISE_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, BFloat16>)
    if (n > W) {
      auto both = [=](auto... two) { store_two_first(to, n, f(two.first...), f(two.second...)); };
      return both(load_two_first(from, n)...);
    }
#endif
  for (; i + W <= n; i += W) store_as(to + i, f(load_as(from + i, V{})...));
  if (i < n) store_first(to + i, n - i, f(load_first(from + i, n - i, V{})...));
}

// Lanes added up until 16 bytes of them are left.
template <class V, size_t... I> inline auto half_sum(V v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (sizeof...(I) + I)...);
}
template <class A, int bytes = NORMWISE_VECTOR_BYTES> inline auto folded(typename VectorOf<A, bytes>::type v) {
  if constexpr (bytes == 16) return v;
  else return folded<A, bytes / 2>(half_sum(v, std::make_index_sequence<bytes / 2 / sizeof(A)>{}));
}

// The sum over lanes; the last additions, which would round away the most of a float32 sum, in float64.
inline double lane_sum(Lanes<float> v) {
  const auto wide = __builtin_convertvector(folded<float>(v), VectorOf<double, 32>::type);
  return (wide[0] + wide[2]) + (wide[1] + wide[3]);
}
inline double lane_sum(Lanes<double> v) {
  const auto two = folded<double>(v);
  return two[0] + two[1];
}

// The same where rounding does not matter but time does.
inline float rough_lane_sum(Lanes<float> v) {
  const auto four = folded<float>(v);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
inline double rough_lane_sum(Lanes<double> v) { return lane_sum(v); }

// The even and the odd elements of a and b, one after the other.
template <class V, size_t... I> inline Two<V> even_odd(V a, V b, std::index_sequence<I...>) {
  return {__builtin_shufflevector(a, b, (2 * I)...), __builtin_shufflevector(a, b, (2 * I + 1)...)};
}
template <class A> inline Two<Lanes<A>> even_odd(Lanes<A> a, Lanes<A> b) {
  return even_odd(a, b, std::make_index_sequence<lane_count<A>>{});
}

// Half of a register's lanes, from `first` on, as float64.
template <size_t first, size_t... I> inline Lanes<double> wide(Lanes<float> v, std::index_sequence<I...>) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, (first + I)...), Lanes<double>);
}

// The sums over the lanes of as many registers as one has doubles, in their order; the last additions in float64. Together they
// take a fraction of the time that they would take one by one.
constexpr int kTogether = lane_count<double>;
template <class A> inline Lanes<double> lane_sums(const Lanes<A> (&rows)[kTogether]) {
  constexpr bool narrow = std::is_same_v<A, float>;
  Lanes<A> v[kTogether];
  std::memcpy(v, rows, sizeof(v));
  for (int count = kTogether / 2; count > narrow; count /= 2)
    for (int i = 0; i < count; ++i) {
      const auto two = even_odd<A>(v[2 * i], v[2 * i + 1]);
      v[i] = two.first + two.second;
    }
  if constexpr (narrow) {
    constexpr std::make_index_sequence<kTogether> half{};
    const auto two = even_odd<float>(v[0], v[1]);
    const auto last = even_odd<double>(wide<0>(two.first, half) + wide<0>(two.second, half),
                                       wide<kTogether>(two.first, half) + wide<kTogether>(two.second, half));
    return last.first + last.second;
  } else {
    return v[0];
  }
}

// 0 for the first `count` lanes, all bits for the others.
template <class A> inline auto lane_mask(int count) {
  using Integer = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  static constexpr Integer mask[32] = {0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,  0,
                                       -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
  return load_memory<Lanes<Integer>>(mask + 16 - count);
}
template <class A> inline Lanes<A> without_first(Lanes<A> v, int count) {
  const auto mask = lane_mask<A>(count);
  return bit_cast<Lanes<A>>(bit_cast<std::remove_const_t<decltype(mask)>>(v) & mask);
}
template <class A> inline Lanes<A> only_first(Lanes<A> v, int count) {
  const auto mask = lane_mask<A>(count);
  return bit_cast<Lanes<A>>(bit_cast<std::remove_const_t<decltype(mask)>>(v) & ~mask);
}

// `one` in the first `count` lanes, `other` in those that follow.
template <class A> inline Lanes<A> seam(Lanes<A> one, Lanes<A> other, int64_t count) {
  return lane_mask<A>(static_cast<int>(count)) ? other : one;
}

// Whether all bits of n values are 0. Read in half registers, as float32 is written by what computes it in float64: what is read
// in larger pieces than it was just written waits for the memory.
template <class A> inline bool all_zero(const A* p, int64_t n) {
  using Bits = VectorOf<int64_t, NORMWISE_VECTOR_BYTES / 2>::type;
  constexpr int64_t step = sizeof(Bits) / sizeof(A);
  Bits any{};
  int64_t i = 0;
  for (; i + step <= n; i += step) any |= load_memory<Bits>(p + i);
  bool zero = true;
  for (size_t k = 0; k < sizeof(Bits) / sizeof(int64_t); ++k) zero &= any[k] == 0;
  for (; i < n; ++i) zero &= p[i] == 0;
  return zero;
}

template <class V> struct Pair { V first, second; };

// Vectors whose lanes add up to (sum of f(from[i]...).first, sum of f(from[i]...).second) over i < n; f takes lanes.
template <class T, class F, class... From>
inline Pair<Lanes<acc_t<T>>> partial_sums(int64_t n, F f, const T* lead, const From*... from) {
  using A = acc_t<T>;
  using V = Lanes<A>;
  constexpr int64_t W = lane_count<A>;
  if (n < W) {
    if (n == 0) return {V{}, V{}};
    const int count = static_cast<int>(n);
    const auto p = f(load_first(lead, n, V{}), load_first(from, n, V{})...);
    return {only_first<A>(p.first, count), only_first<A>(p.second, count)};
  }
  V a0{}, a1{}, a2{}, a3{}, b0{}, b1{}, b2{}, b3{};  // independent, so that the adder's latency does not limit
  auto both = [f](V& a, V& b, V& c, V& d, auto... two) {
    const auto p = f(two.first...), q = f(two.second...);
    a += p.first, b += p.second, c += q.first, d += q.second;
  };
  int64_t i = 0;
  for (; i + 4 * W <= n; i += 4 * W) {
    both(a0, b0, a1, b1, load_two(lead + i), load_two(from + i)...);
    both(a2, b2, a3, b3, load_two(lead + i + 2 * W), load_two(from + i + 2 * W)...);
  }
#if NORMWISE_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, BFloat16>) {
    if (i + 2 * W <= n) both(a0, b0, a1, b1, load_two(lead + i), load_two(from + i)...), i += 2 * W;
    if (const int rest = static_cast<int>(n - i); rest > W) {
      V a{}, b{}, c{}, d{};
      both(a, b, c, d, load_two_first(lead + i, rest), load_two_first(from + i, rest)...);
      const int even = (rest + 1) / 2, odd = rest / 2;
      a2 += only_first<A>(a, even), b2 += only_first<A>(b, even), a3 += only_first<A>(c, odd), b3 += only_first<A>(d, odd);
      i = n;
    }
  }
#endif
  for (; i + W <= n; i += W) {
    const auto p = f(load_as(lead + i, V{}), load_as(from + i, V{})...);
    a0 += p.first, b0 += p.second;
  }
  if (i < n) {  // the last lanes once more, without those that were counted
    const auto p = f(load_as(lead + n - W, V{}), load_as(from + n - W, V{})...);
    const int counted = static_cast<int>(W - (n - i));
    a1 += without_first<A>(p.first, counted), b1 += without_first<A>(p.second, counted);
  }
  return {(a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3)};
}

template <class V> inline Pair<double> lane_sum(const Pair<V>& sums) { return {lane_sum(sums.first), lane_sum(sums.second)}; }

}  // namespace
}  // namespace normwise
