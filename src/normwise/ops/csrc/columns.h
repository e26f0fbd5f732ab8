// Kernels for channels-last memory: channels are the vector lanes, so sums need no reordering.
//
// Sums take rows several at a time to lessen the traffic with accumulators. What writes takes one at a time: with rows that
// lie a multiple of 4096 bytes apart, a load from the next row would wait for the store to this one. Blocks of kRows rows are
// summed in the element's accumulator type and merged in float64; the block does not depend on the tile, so neither do the
// results.
#pragma once

#include "activation.h"
#include "rows.h"

namespace normwise {
namespace {

constexpr int64_t kRows = 128;

// Calls f(integral_constant<count>, row) for groups of rows and then for single ones.
template <int group = 4, class F> inline void by_rows(int64_t rows, F f) {
  int64_t r = 0;
  for (; r + group <= rows; r += group) f(std::integral_constant<int, group>{}, r);
  for (; r < rows; ++r) f(std::integral_constant<int, 1>{}, r);
}

// Adds a block's sums and sums of squares about `center`.
template <class T> inline void add_deviations(const T* block, int64_t rows, const Tile& tile, const acc_t<T>* center,
                                              acc_t<T>* sum, acc_t<T>* square) {
  using A = acc_t<T>;
  for (int64_t k = 0; k < tile.width; ++k) sum[k] = square[k] = 0;
  by_rows<8>(rows, [=](auto count, int64_t r) {
    const T* from = block + r * tile.stride;
#pragma omp simd
    for (int64_t k = 0; k < tile.width; ++k) {
      A s = 0, q = 0;
      for (int j = 0; j < count.value; ++j) {
        const A d = load(from[j * tile.stride + k]) - center[k];
        s += d;
        q += d * d;
      }
      sum[k] += s;
      square[k] += q;
    }
  });
}

// Whether move_poor_center may find one to move. Hardly ever: a quick look at all comes first.
template <class A> inline bool any_poor_center(const A* sum, const A* square, int64_t width, double share) {
  int poor = 0;
#pragma omp simd reduction(| : poor)
  for (int64_t k = 0; k < width; ++k) poor |= is_poor_center(sum[k] * share, square[k], share);
  return poor != 0;
}

template <class T> void column_moments(const T* x, const Tile& tile, double* mean, double* m2) {
  using A = acc_t<T>;
  A center[kTileWidth], sum[kTileWidth], square[kTileWidth];
  const int64_t width = tile.width, stride = tile.stride;
  for (int64_t k = 0; k < width; ++k) mean[k] = m2[k] = 0;
  for (int64_t begin = 0; begin < tile.rows; begin += kRows) {
    const T* block = x + begin * stride;
    const int64_t rows = tile.rows - begin < kRows ? tile.rows - begin : kRows;
    const double share = 1.0 / static_cast<double>(rows);
    for (int64_t k = 0; k < width; ++k) center[k] = begin == 0 ? guess_center(block + k, rows, stride) : static_cast<A>(mean[k]);
    add_deviations(block, rows, tile, center, sum, square);
    bool moved = any_poor_center(sum, square, width, share);
    for (int tries = kTries; tries > 0 && moved; --tries) {
      moved = false;
      for (int64_t k = 0; k < width; ++k) moved |= move_poor_center(center[k], sum[k], square[k], share);
      if (moved) add_deviations(block, rows, tile, center, sum, square);
    }
    for (int64_t k = 0; k < width; ++k) {
      const double offset = sum[k] * share;
      merge(mean[k], m2[k], begin, center[k] + offset, square[k] - offset * sum[k], rows);
    }
  }
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

// One value a channel, of a row of so many pairs, in the order of load_two.
template <class T, int pairs> struct Channels {
  using A = acc_t<T>;
  Two<Lanes<A>> of[pairs];
  explicit Channels(const A* values) {
    for (int i = 0; i < pairs; ++i) {
      of[i] = load_two(values + 2 * i * lane_count<A>);
      if constexpr (std::is_same_v<T, BFloat16>) of[i] = even_odd<A>(of[i].first, of[i].second);
    }
  }
};

template <class T> void column_apply(const T* x, T* y, const Tile& tile, const Affine<acc_t<T>>& affine, const Activation& activation) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  const int64_t width = tile.width, stride = tile.stride;
  with_activation(activation.kind, [&](auto kind) { with_pairs<A>(width, [&](auto pairs) {
    if constexpr (constexpr int P = pairs.value; P > 0) {
      const Channels<T, P> center(affine.center), scale(affine.scale), shift(affine.shift);
      const auto value = [=](auto v, auto c, auto s, auto t) { return activate<kind.value>((v - c) * s + t, slope); };
      for (int64_t r = 0; r < tile.rows; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < P; ++i) {
          const int64_t at = r * stride + 2 * i * lane_count<A>;
          const auto v = load_two(x + at), c = center.of[i], s = scale.of[i], t = shift.of[i];
          store_two(y + at, value(v.first, c.first, s.first, t.first), value(v.second, c.second, s.second, t.second));
        }
      return;
    }
    const A *center = affine.center, *scale = affine.scale, *shift = affine.shift;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T* __restrict from = x + r * stride;
      T* __restrict to = y + r * stride;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k)
        store(to + k, activate<kind.value>((load(from[k]) - center[k]) * scale[k] + shift[k], slope));
    }
  }); });
}

template <class T>
void column_grad_sums(const T* g, const T* x, const Tile& tile, const acc_t<T>* mean, const Affine<acc_t<T>>& affine,
                      const Activation& activation, double* s1, double* s2) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  const int64_t width = tile.width, stride = tile.stride;
  with_activation(activation.kind, [&](auto kind) {
    A first[kTileWidth], second[kTileWidth];
    for (int64_t k = 0; k < width; ++k) s1[k] = s2[k] = 0;
    for (int64_t begin = 0; begin < tile.rows; begin += kRows) {
      const T *gb = g + begin * stride, *xb = x + begin * stride;
      for (int64_t k = 0; k < width; ++k) first[k] = second[k] = 0;
      by_rows(tile.rows - begin < kRows ? tile.rows - begin : kRows, [&](auto count, int64_t r) {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const A center = affine.center[k], scale = affine.scale[k], shift = affine.shift[k], mu = mean[k];
          A a = 0, b = 0;
          for (int j = 0; j < count.value; ++j) {
            const A v = load(xb[(r + j) * stride + k]);
            const A d = activate_grad<kind.value>(A(load(gb[(r + j) * stride + k])), (v - center) * scale + shift, slope);
            a += d;
            b += d * (v - mu);
          }
          first[k] += a;
          second[k] += b;
        }
      });
      for (int64_t k = 0; k < width; ++k) s1[k] += first[k], s2[k] += second[k];
    }
  });
}

template <class T>
void column_grad_input(const T* g, const T* x, T* dx, const Tile& tile, const Affine<acc_t<T>>& affine, const Slant<acc_t<T>>& slant,
                       const Activation& activation) {
  using A = acc_t<T>;
  const A leak = A(activation.slope);
  const int64_t width = tile.width, stride = tile.stride;
  with_activation(activation.kind, [&](auto kind) { with_pairs<A>(width, [&](auto pairs) {
    if constexpr (constexpr int P = pairs.value; P > 0) {
      const Channels<T, P> center(affine.center), scale(affine.scale), shift(affine.shift);
      const Channels<T, P> mean(slant.mean), slope(slant.slope), offset(slant.offset);
      const auto value = [=](auto d, auto v, auto c, auto s, auto t, auto m, auto k, auto o) {
        return s * activate_grad<kind.value>(d, (v - c) * s + t, leak) + (k * (v - m) + o);
      };
      for (int64_t r = 0; r < tile.rows; ++r)
#pragma GCC unroll 2
        for (int i = 0; i < P; ++i) {
          const int64_t at = r * stride + 2 * i * lane_count<A>;
          const auto d = load_two(g + at), v = load_two(x + at), c = center.of[i], s = scale.of[i], t = shift.of[i];
          const auto m = mean.of[i], k = slope.of[i], o = offset.of[i];
          store_two(dx + at, value(d.first, v.first, c.first, s.first, t.first, m.first, k.first, o.first),
                    value(d.second, v.second, c.second, s.second, t.second, m.second, k.second, o.second));
        }
      return;
    }
    const A *center = affine.center, *scale = affine.scale, *shift = affine.shift;
    const A *mean = slant.mean, *slope = slant.slope, *offset = slant.offset;
    for (int64_t r = 0; r < tile.rows; ++r) {
      const T *__restrict gp = g + r * stride, *__restrict xp = x + r * stride;
      T* __restrict to = dx + r * stride;
#pragma omp simd
      for (int64_t k = 0; k < width; ++k) {
        const A v = load(xp[k]);
        const A d = activate_grad<kind.value>(A(load(gp[k])), (v - center[k]) * scale[k] + shift[k], leak);
        store(to + k, scale[k] * d + (slope[k] * (v - mean[k]) + offset[k]));
      }
    }
  }); });
}

}  // namespace
}  // namespace normwise
