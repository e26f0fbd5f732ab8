// The four kernels over a whole tensor, in either layout, in parallel. Shared by the separate and the fused operators.
//
// A sum belongs to one task, and blocks within it do not depend on how tasks are cut, so results are the same bits for any
// number of threads.
#pragma once

#include "caches.h"
#include "members.h"

namespace normwise {

// How columns are cut into tiles for sums: narrow enough to give every thread as many, never below a cache line. No narrower,
// as whole rows are read faster than parts of them.
inline int64_t tile_width(const Cells& x) {
  const int64_t threads = thread_count();
  int64_t width = std::min<int64_t>(kTileWidth, std::max<int64_t>(x.C, 1));
  const auto uneven = [&] {
    const int64_t tiles = x.N * x.pieces * ((x.C + width - 1) / width);
    return tiles < 2 * threads && tiles % threads != 0;
  };
  while (width > 32 && uneven()) width = (width / 2 + 15) / 16 * 16;
  return width;
}

// Calls f(i / inner, i % inner) for begin <= i < end, with one division: a short cell takes less time than one.
template <class F> inline void for_pairs(int64_t begin, int64_t end, int64_t inner, F f) {
  if (begin >= end) return;
  int64_t outer = begin / inner, rest = begin % inner;
  for (int64_t i = begin; i < end; ++i) {
    f(outer, rest);
    if (++rest == inner) rest = 0, ++outer;
  }
}

// Calls f(sample, first, count) for begin <= i < end cut where a sample of `size` ends.
template <class F> inline void by_sample(int64_t begin, int64_t end, int64_t size, F f) {
  while (begin < end) {
    const int64_t n = begin / size, stop = std::min(end, (n + 1) * size);
    f(n, begin - n * size, stop - begin);
    begin = stop;
  }
}

// The same from the end on, `most` at a time: what sums read last is still in the cache when the second pass begins.
template <class F> inline void by_sample_from_the_end(int64_t begin, int64_t end, int64_t size, int64_t most, F f) {
  while (begin < end) {
    const int64_t n = (end - 1) / size, start = std::max({begin, n * size, end - most});
    f(n, start - n * size, end - start);
    end = start;
  }
}

// Elements of a piece, the place of one, and the blocks of `width` channels that start there.
inline int64_t length(const Cells& x) { return x.M / x.pieces; }
inline int64_t offset(const Cells& x, int64_t piece, int64_t c) { return (piece * x.C + (x.columns ? 0 : c)) * length(x) + (x.columns ? c : 0); }
inline Tile tile(const Cells& x, int64_t width, bool streams = false) { return {length(x), width, x.C, streams}; }
inline Runs runs(const Cells& x, int64_t width, bool streams = false) { return {width, length(x), streams}; }

// Whether a pass over so many tensors of x's size leaves nothing in the last cache of what it wrote first, where the next to read
// it begins. Then what is written may as well go past the caches.
template <class T> bool streams(const Cells& x, int64_t tensors) {
  return tensors * x.numel() * int64_t{sizeof(T)} > last_cache_bytes();
}

// Calls f(piece, c, width), in parallel, for tiles of the columns layout or runs of cells of the rows layout.
template <class F> void for_each_sum(const Cells& x, F f) {
  const int64_t pieces = x.N * x.pieces;
  if (!x.columns)
    return parallel(pieces * x.C, length(x), [&](int64_t begin, int64_t end) { by_sample(begin, end, x.C, f); });
  const int64_t width = tile_width(x), tiles = (x.C + width - 1) / width;
  parallel(pieces * tiles, width * length(x), [&](int64_t begin, int64_t end) {
    for_pairs(begin, end, tiles, [&](int64_t p, int64_t t) { f(p, t * width, std::min(width, x.C - t * width)); });
  });
}

// How many cells, or rows, to write at a time: of a small part of the second-level cache.
inline int64_t run_length(const Cells& x) {
  const int64_t size = x.columns ? x.C : length(x);
  return std::max<int64_t>(1, 128 * 1024 / std::max<int64_t>(1, size));
}

// Calls f(n, c, first element, count), in parallel, for `count` cells of a sample from channel c on; in the columns layout
// for `count` of its whole rows (c = 0).
template <class F> void for_each_run(const Cells& x, F f) {
  const int64_t inner = x.columns ? length(x) : x.C, size = x.columns ? x.C : length(x);
  parallel(x.N * x.pieces * inner, size, [&](int64_t begin, int64_t end) {
    by_sample_from_the_end(begin, end, inner, run_length(x), [&](int64_t p, int64_t first, int64_t count) {
      f(p / x.pieces, x.columns ? 0 : first, (p * inner + first) * size, count);
    });
  });
}

// The means that a forward pass saved, which as many variances follow. In float64: rounded to float32 a mean far from 0 would
// be off by a good part of the deviation, and the gradient with it.
inline const double* saved_moments(const Tensor& t, int64_t count) {
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == 2 * count && t.scalar_type() == ScalarType::Double,
                  "normwise: expected the moments as the forward pass returned them");
  return const_data<double>(t);
}

// Two sums a piece: those of the cells themselves where these are in one piece.
struct Sums {
  Buffer<double> memory;
  double *first, *second;
  Sums(const Cells& x, double* of_cells, double* of_cells_too)
      : memory(x.pieces > 1 ? 2 * x.N * x.pieces * x.C : 0),
        first(x.pieces > 1 ? memory.data() : of_cells),
        second(x.pieces > 1 ? first + x.N * x.pieces * x.C : of_cells_too) {}
};

template <class T> void all_moments(const Cells& x, double* mean, double* m2) {
  const auto& k = kernels<T>();
  const T* data = const_data<T>(x.tensor);
  const Sums of(x, mean, m2);
  for_each_sum(x, [&](int64_t p, int64_t c, int64_t width) {
    const T* from = data + offset(x, p, c);
    double *to_mean = of.first + p * x.C + c, *to_m2 = of.second + p * x.C + c;
    if (x.columns) k.column_moments(from, tile(x, width), to_mean, to_m2);
    else k.row_moments(from, runs(x, width), to_mean, to_m2);
  });
  for (int64_t n = 0; n < x.N && x.pieces > 1; ++n) {
    const int64_t cell = n * x.C, at = cell * x.pieces;
    pool_rows(of.first + at, of.second + at, x.pieces, x.C, static_cast<double>(length(x)), mean + cell, m2 + cell);
  }
}

template <class T, class AffineOf>
void all_apply(const Cells& x, const Tensor& y, const AffineOf& affine, Activation act) {
  const auto& k = kernels<T>();
  const T* from = const_data<T>(x.tensor);
  T* to = data<T>(y);
  const bool past = streams<T>(x, 2);
  for_each_run(x, [&](int64_t n, int64_t c, int64_t first, int64_t count) {
    if (x.columns) k.column_apply(from + first, to + first, {count, x.C, x.C, past}, affine(n), act);
    else k.row_apply(from + first, to + first, runs(x, count, past), affine(n) + c, act);
  });
}

template <class T, class MeanOf, class AffineOf>
void all_grad_sums(const Tensor& g, const Cells& x, const MeanOf& mean, const AffineOf& affine, Activation act,
                   double* s1, double* s2) {
  const auto& k = kernels<T>();
  const T *gp = const_data<T>(g), *xp = const_data<T>(x.tensor);
  const Sums of(x, s1, s2);
  for_each_sum(x, [&](int64_t p, int64_t c, int64_t width) {
    const int64_t n = p / x.pieces, at = offset(x, p, c);
    double *to1 = of.first + p * x.C + c, *to2 = of.second + p * x.C + c;
    if (x.columns) k.column_grad_sums(gp + at, xp + at, tile(x, width), mean(n) + c, affine(n) + c, act, to1, to2);
    else k.row_grad_sums(gp + at, xp + at, runs(x, width), mean(n) + c, affine(n) + c, act, to1, to2);
  });
  for (int64_t n = 0; n < x.N && x.pieces > 1; ++n) {
    const int64_t cell = n * x.C, at = cell * x.pieces;
    add_rows(of.first + at, x.pieces, x.C, s1 + cell);
    add_rows(of.second + at, x.pieces, x.C, s2 + cell);
  }
}

template <class T, class AffineOf, class SlantOf>
void all_grad_input(const Tensor& g, const Cells& x, const Tensor& dx, const AffineOf& affine, const SlantOf& slant,
                    Activation act) {
  const auto& k = kernels<T>();
  const T *gp = const_data<T>(g), *xp = const_data<T>(x.tensor);
  T* to = data<T>(dx);
  const bool past = streams<T>(x, 3);
  for_each_run(x, [&](int64_t n, int64_t c, int64_t first, int64_t count) {
    const auto a = affine(n) + c;
    const auto s = slant(n) + c;
    if (x.columns) k.column_grad_input(gp + first, xp + first, to + first, {count, x.C, x.C, past}, a, s, act);
    else k.row_grad_input(gp + first, xp + first, to + first, runs(x, count, past), a, s, act);
  });
}

// The gradient of a parameter from its values': of its shape and type, or (count,) where there is none.
template <class A> Tensor shaped_like(const MaybeTensor& parameter, int64_t count, const double* values) {
  std::vector<int64_t> sizes{count};
  if (parameter) sizes.assign(parameter->sizes().begin(), parameter->sizes().end());
  return rounded(sizes, parameter ? parameter->scalar_type() : std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float, values);
}

// The same from its cells': as it stands for one value per cell, summed over samples otherwise.
template <class A> Tensor parameter_gradient(const Cells& x, const MaybeTensor& parameter, const double* cells) {
  if (is_per_sample(x, parameter)) return shaped_like<A>(parameter, x.N * x.C, cells);
  const Buffer<double> sums(x.C);
  add_rows(cells, x.N, x.C, sums.data());
  return shaped_like<A>(parameter, x.C, sums.data());
}

}  // namespace normwise
