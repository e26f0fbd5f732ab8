// Kernels for channels-last memory: channels are the vector lanes, so sums need no reordering.
//
// Sums take rows several at a time to lessen the traffic with accumulators, and from distant places: each is then the head of
// a stream that the processor fetches ahead, where neighbours in one page of memory would look like leaps. What writes takes
// one at a time: with rows that lie a multiple of 4096 bytes apart, a load from the next row would wait for the store to this
// one. Blocks of kRows rows are summed in the element's accumulator type and merged in float64; the block does not depend on
// the tile, so neither do the results.
#pragma once

#include "activation.h"
#include "rows.h"

namespace normwise {
namespace {

constexpr int64_t kRows = 128;
// Arrays of as many values, one after the other, take this: a multiple of 4096 bytes apart they would compete for the same
// places in the cache, and loads from one would wait for stores to another.
constexpr int64_t kRoom = kTileWidth + 80;

// Calls f(integral_constant<count>, row, step) for `count` rows that lie `step` elements from each other, and then for single
// ones. Neighbours where rows are short: then distant ones would only compete for the same places in the cache.
template <class T, int count, class F> inline void by_rows(int64_t rows, int64_t stride, F f) {
  const bool shorts = stride * int64_t{sizeof(T)} < 1024;
  const int64_t groups = rows / count, step = shorts ? stride : groups * stride, next = shorts ? count : 1;
  for (int64_t i = 0; i < groups; ++i) f(std::integral_constant<int, count>{}, i * next, step);
  for (int64_t r = count * groups; r < rows; ++r) f(std::integral_constant<int, 1>{}, r, step);
}

// Calls f(k, part) along a row, where part names the type of what to take from there: pairs of registers in the order of
// load_two, then a register, then single elements.
template <class V> struct As {};
template <class T, class F> inline void by_parts(int64_t width, F f) {
  using A = acc_t<T>;
  constexpr int64_t W = lane_count<A>;
  int64_t k = 0;
  for (; k + 2 * W <= width; k += 2 * W) f(k, As<Two<Lanes<A>>>{});
  for (; k + W <= width; k += W) f(k, As<Lanes<A>>{});
  for (; k < width; ++k) f(k, As<A>{});
}

template <class T, class V> inline Two<V> elements(const T* p, As<Two<V>>) { return load_two(p); }
template <class T, class V> inline V elements(const T* p, As<V>) {
  if constexpr (std::is_arithmetic_v<V>) return load(*p);
  else return load_as(p, V{});
}
template <class T, class V> inline void put(T* to, Two<V> part, bool streams) { store_two(to, part.first, part.second, streams); }
template <class T, class V> inline void put(T* to, V part, bool streams) {
  if constexpr (std::is_arithmetic_v<V>) store(to, part);
  else store_as(to, part, streams);
}

// Of what has one value a channel and is in_order. Register by register: a pair that is copied as a whole goes through memory.
template <class A, class V> inline Two<V> values(const A* p, As<Two<V>>) {
  return {load_memory<V>(p), load_memory<V>(p + lane_count<A>)};
}
template <class A, class V> inline V values(const A* p, As<V>) { return load_memory<V>(p); }
template <class A, class V> inline void add(A* to, V more) {
  more += load_memory<V>(to);
  std::memcpy(to, &more, sizeof(more));
}
template <class A, class V> inline void add(A* to, Two<V> more) {
  add(to, more.first);
  add(to + lane_count<A>, more.second);
}

// f of parts: of either register of a pair.
template <class F, class V, class... More> inline Two<V> combine(F f, const Two<V>& part, const More&... more) {
  return {f(part.first, more.first...), f(part.second, more.second...)};
}
template <class F, class V, class... More> inline V combine(F f, const V& part, const More&... more) { return f(part, more...); }

// The same with parts that f changes.
template <class F, class V, class... More> inline void update(F f, Two<V>& part, More&... more) {
  f(part.first, more.first...);
  f(part.second, more.second...);
}
template <class F, class V, class... More> inline void update(F f, V& part, More&... more) { f(part, more...); }

// How much memory in_order needs, at most.
template <class T> constexpr int64_t kOrderedRoom = std::is_same_v<T, BFloat16> ? kRoom : 1;

// One value a channel in the order in which load_two takes elements: in `memory`, unless they are in that order already.
template <class T> inline const acc_t<T>* in_order(const acc_t<T>* given, int64_t width, acc_t<T>* memory) {
  using A = acc_t<T>;
  constexpr int64_t W = lane_count<A>;
  if constexpr (!std::is_same_v<T, BFloat16>) return given;
  int64_t k = 0;
  for (; k + 2 * W <= width; k += 2 * W) {
    const auto two = even_odd<A>(load_memory<Lanes<A>>(given + k), load_memory<Lanes<A>>(given + k + W));
    std::memcpy(memory + k, &two, sizeof(two));
  }
  for (; k < width; ++k) memory[k] = given[k];
  return memory;
}

// Back from that order.
template <class T> inline void restore_order(acc_t<T>* ordered, int64_t width) {
  using A = acc_t<T>;
  constexpr int64_t W = lane_count<A>;
  if constexpr (std::is_same_v<T, BFloat16>)
    for (int64_t k = 0; k + 2 * W <= width; k += 2 * W) {
      A pair[2 * W];
      for (int64_t i = 0; i < W; ++i) pair[2 * i] = ordered[k + i], pair[2 * i + 1] = ordered[k + W + i];
      std::memcpy(ordered + k, pair, sizeof(pair));
    }
}

// Adds a block's sums and sums of squares about `center`.
template <class T> inline void add_deviations(const T* block, int64_t rows, const Tile& tile, const acc_t<T>* center,
                                              acc_t<T>* sum, acc_t<T>* square) {
  using A = acc_t<T>;
  A memory[kOrderedRoom<T>];
  const A* about = in_order<T>(center, tile.width, memory);
  for (int64_t k = 0; k < tile.width; ++k) sum[k] = square[k] = 0;
  by_rows<T, 8>(rows, tile.stride, [=](auto count, int64_t r, int64_t step) {
    const T* from = block + r * tile.stride;
    by_parts<T>(tile.width, [=](int64_t k, auto part) {
      auto c = values(about + k, part);
      decltype(c) s{}, q{};
      for (int j = 0; j < count.value; ++j) {
        auto v = elements(from + j * step + k, part);
        update([](auto& v, auto& c, auto& s, auto& q) { v -= c, s += v, q += v * v; }, v, c, s, q);
      }
      add(sum + k, s);
      add(square + k, q);
    });
  });
  restore_order<T>(sum, tile.width);
  restore_order<T>(square, tile.width);
}

// Whether move_poor_center may find one to move. Hardly ever: a quick look at all comes first.
template <class A> inline bool any_poor_center(const A* sum, const A* square, int64_t width, double share) {
  int poor = 0;
#pragma omp simd reduction(| : poor)
  for (int64_t k = 0; k < width; ++k) poor |= is_poor_center<double>(sum[k] * share, square[k], share);
  return poor != 0;
}

template <class T> void column_moments(const T* x, const Tile& tile, double* mean, double* m2) {
  using A = acc_t<T>;
  A center[kRoom], sum[kRoom], square[kRoom];
  const int64_t width = tile.width, stride = tile.stride;
  for (int64_t k = 0; k < width; ++k) mean[k] = m2[k] = 0;
  for (int64_t begin = 0; begin < tile.rows; begin += kRows) {
    const T* block = x + begin * stride;
    const int64_t rows = tile.rows - begin < kRows ? tile.rows - begin : kRows;
    const double share = 1.0 / static_cast<double>(rows);
    for (int64_t k = 0; k < width; ++k) center[k] = begin == 0 ? mean_of_eight(block + k, rows, stride) : static_cast<A>(mean[k]);
    add_deviations(block, rows, tile, center, sum, square);
    bool moved = any_poor_center(sum, square, width, share);
    for (int tries = kTries; tries > 0 && moved; --tries) {
      moved = false;
      for (int64_t k = 0; k < width; ++k) moved |= move_poor_center(center[k], sum[k], square[k], share);
      if (moved) add_deviations(block, rows, tile, center, sum, square);
    }
    for (int64_t k = 0; k < width; ++k) {
      const auto moments = moments_of<double>(center[k], sum[k], square[k], share);
      merge(mean[k], m2[k], begin, moments.first, moments.second, rows);
    }
  }
  if (any_overflow(mean, m2, width)) mend_overflow(x, width, 1, tile.rows, stride, mean, m2);
}

// Calls f(integral_constant<pairs>) where a row is that many pairs of registers wide: then what belongs to the channels can
// stay in registers for all rows. Else f(integral_constant<0>).
template <class A, class F> inline void with_pairs(int64_t width, const F& f) {
  constexpr int64_t pair = 2 * lane_count<A>;
  switch (width) {
    case pair: return f(std::integral_constant<int, 1>{});
    case 2 * pair: return f(std::integral_constant<int, 2>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// to[r, k] = f(from[r, k]..., of[k]...), where f takes registers or single values.
template <bool streams, class T, class F, size_t... I, size_t... J>
inline void map_tile(const Tile& tile, T* to, F f, const T* const (&from)[sizeof...(I)], const std::array<const acc_t<T>*, sizeof...(J)>& of,
                     std::index_sequence<I...>, std::index_sequence<J...>) {
  using A = acc_t<T>;
  using Pair = Two<Lanes<A>>;
  constexpr int64_t W = lane_count<A>;
  with_pairs<A>(tile.width, [&](auto pairs) {
    if constexpr (constexpr int P = pairs.value; P > 0) {
      A memory[kOrderedRoom<T>];
      struct Channels { Pair of[P]; };
      const Channels channels[] = {load_memory<Channels>(in_order<T>(of[J], 2 * P * W, memory))...};
      for (int64_t r = 0; r < tile.rows; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < P; ++p) {
          const int64_t at = r * tile.stride + 2 * p * W;
          put(to + at, combine(f, elements(from[I] + at, As<Pair>{})..., channels[J].of[p]...), streams);
        }
    } else {
      A memory[sizeof...(J)][kOrderedRoom<T>];
      for (int64_t begin = 0; begin < tile.width; begin += kTileWidth) {
        const int64_t width = tile.width - begin < kTileWidth ? tile.width - begin : kTileWidth;
        const A* const ordered[] = {in_order<T>(of[J] + begin, width, memory[J])...};
        for (int64_t r = 0; r < tile.rows; ++r) {
          const int64_t at = r * tile.stride + begin;
          by_parts<T>(width, [&](int64_t k, auto part) {
            put(to + at + k, combine(f, elements(from[I] + at + k, part)..., values(ordered[J] + k, part)...), streams);
          });
        }
      }
    }
  });
}
template <class T, class F, size_t n, size_t m>
inline void map_tile(const Tile& tile, T* to, F f, const T* const (&from)[n], const std::array<const acc_t<T>*, m>& of) {
  constexpr std::make_index_sequence<n> inputs{};
  constexpr std::make_index_sequence<m> values{};
  const uintptr_t row_bytes = static_cast<uintptr_t>(tile.stride) * sizeof(T);
  if (tile.streams && (reinterpret_cast<uintptr_t>(to) | row_bytes) % NORMWISE_VECTOR_BYTES == 0) {
    map_tile<true>(tile, to, f, from, of, inputs, values);
    finish_streaming();
  } else {
    map_tile<false>(tile, to, f, from, of, inputs, values);
  }
}

template <class T> void column_apply(const T* x, T* y, const Tile& tile, const Affine<acc_t<T>>& affine, const Activation& activation) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    with_affine<T>(affine, tile.width, [&](auto normalized, const auto& of) {
      map_tile<T>(tile, y, [=](auto... v) { return activate<kind.value>(normalized(v...), slope); }, {x}, of);
    });
  });
}

template <class T>
void column_grad_sums(const T* g, const T* x, const Tile& tile, const acc_t<T>* mean, const Affine<acc_t<T>>& affine,
                      const Activation& activation, double* s1, double* s2) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  const int64_t width = tile.width, stride = tile.stride;
  A memory[4][kOrderedRoom<T>];
  const A *centers = in_order<T>(affine.center, width, memory[0]), *scales = in_order<T>(affine.scale, width, memory[1]);
  const A *shifts = in_order<T>(affine.shift, width, memory[2]), *means = in_order<T>(mean, width, memory[3]);
  with_activation(activation.kind, [&](auto kind) {
    const auto term = [=](auto& d, auto& v, auto& center, auto& scale, auto& shift, auto& mu, auto& a, auto& b) {
      d = activate_grad<kind.value>(d, (v - center) * scale + shift, slope);
      a += d, b += d * (v - mu);
    };
    A first[kRoom], second[kRoom];
    for (int64_t k = 0; k < width; ++k) s1[k] = s2[k] = 0;
    for (int64_t begin = 0; begin < tile.rows; begin += kRows) {
      for (int64_t k = 0; k < width; ++k) first[k] = second[k] = 0;
      const int64_t rows = tile.rows - begin < kRows ? tile.rows - begin : kRows;
      by_rows<T, 4>(rows, stride, [&](auto count, int64_t r, int64_t step) {
        const int64_t at = (begin + r) * stride;
        by_parts<T>(width, [=, &first, &second](int64_t k, auto part) {
          auto center = values(centers + k, part), scale = values(scales + k, part), shift = values(shifts + k, part);
          auto mu = values(means + k, part);
          decltype(mu) a{}, b{};
          for (int j = 0; j < count.value; ++j) {
            auto d = elements(g + at + j * step + k, part), v = elements(x + at + j * step + k, part);
            update(term, d, v, center, scale, shift, mu, a, b);
          }
          add(first + k, a);
          add(second + k, b);
        });
      });
      restore_order<T>(first, width);
      restore_order<T>(second, width);
      for (int64_t k = 0; k < width; ++k) s1[k] += first[k], s2[k] += second[k];
    }
  });
}

template <class T>
void column_grad_input(const T* g, const T* x, T* dx, const Tile& tile, const Affine<acc_t<T>>& affine, const Slant<acc_t<T>>& slant,
                       const Activation& activation) {
  using A = acc_t<T>;
  const A leak = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    const auto value = [=](auto d, auto v, auto scale, auto shift, auto slope, auto offset, auto... center) {
      v = (v - ... - center);
      return scale * activate_grad<kind.value>(d, v * scale + shift, leak) + (slope * v + offset);
    };
    with_center(affine.center, tile.width, [&](auto... center) {
      map_tile<T>(tile, dx, value, {g, x}, std::array{affine.scale, affine.shift, slant.slope, slant.offset, center...});
    });
  });
}

}  // namespace
}  // namespace normwise
