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

constexpr int64_t kRows = 64;

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
    bool moved = true;
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

// Calls f(integral_constant<registers>) where a row is that many registers wide: then what belongs to the channels can stay in
// registers for all rows. Else, and for half precision, which gains nothing by it, f(integral_constant<0>).
template <class T, class F> inline void with_width(int64_t width, const F& f) {
  constexpr int64_t W = lane_count<acc_t<T>>;
  switch (sizeof(T) < sizeof(float) ? 0 : width) {
    case W: return f(std::integral_constant<int, 1>{});
    case 2 * W: return f(std::integral_constant<int, 2>{});
    case 4 * W: return f(std::integral_constant<int, 4>{});
    default: return f(std::integral_constant<int, 0>{});
  }
}

// One value a channel, of a row of `registers`.
template <class A, int registers> struct Channels {
  Lanes<A> lanes[registers];
  explicit Channels(const A* values) {
    for (int i = 0; i < registers; ++i) lanes[i] = load_as(values + i * lane_count<A>, Lanes<A>{});
  }
};

template <class T> void column_apply(const T* x, T* y, const Tile& tile, const Affine<acc_t<T>>& affine, const Activation& activation) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  const int64_t width = tile.width, stride = tile.stride;
  with_activation(activation.kind, [&](auto kind) { with_width<T>(width, [&](auto registers) {
    if constexpr (constexpr int R = registers.value; R > 0) {
      const Channels<A, R> center(affine.center), scale(affine.scale), shift(affine.shift);
      for (int64_t r = 0; r < tile.rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          const int64_t at = r * stride + i * lane_count<A>;
          const auto v = load_as(x + at, Lanes<A>{});
          store_as(y + at, activate<kind.value>((v - center.lanes[i]) * scale.lanes[i] + shift.lanes[i], slope));
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
  with_activation(activation.kind, [&](auto kind) { with_width<T>(width, [&](auto registers) {
    if constexpr (constexpr int R = registers.value; R > 0) {
      const Channels<A, R> center(affine.center), scale(affine.scale), shift(affine.shift);
      const Channels<A, R> mean(slant.mean), slope(slant.slope), offset(slant.offset);
      for (int64_t r = 0; r < tile.rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          const int64_t at = r * stride + i * lane_count<A>;
          const auto v = load_as(x + at, Lanes<A>{});
          const auto z = (v - center.lanes[i]) * scale.lanes[i] + shift.lanes[i];
          const auto d = activate_grad<kind.value>(load_as(g + at, Lanes<A>{}), z, leak);
          store_as(dx + at, scale.lanes[i] * d + (slope.lanes[i] * (v - mean.lanes[i]) + offset.lanes[i]));
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
