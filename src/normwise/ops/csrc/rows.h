// Kernels for contiguous cells.
//
// Sums run over blocks short enough for float32 and for the first-level cache; blocks are merged in float64.
#pragma once

#include "activation.h"

namespace normwise {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int kTries = 3;  // to improve a centre; one has always been enough

// Merges a block's (count, mean, m2) into a running one (Chan, Golub & LeVeque 1979).
inline void merge(double& mean, double& m2, int64_t count, double block_mean, double block_m2, int64_t block_count) {
  if (count == 0) {
    mean = block_mean;
    m2 = block_m2;
    return;
  }
  const double share = static_cast<double>(block_count) / static_cast<double>(count + block_count);
  const double delta = block_mean - mean;
  mean += delta * share;
  m2 += block_m2 + delta * delta * share * static_cast<double>(count);
}

// A rough mean: of eight values at equal distances. Dividing first makes it exact for constant input.
template <class T> inline acc_t<T> mean_of_eight(const T* x, int64_t n, int64_t stride) {
  using A = acc_t<T>;
  const auto eighth = [=](int64_t i) { return A(0.125) * load(x[(i * n >> 3) * stride]); };
  // In pairs: one long chain of additions would take most of a short row's time.
  return ((eighth(0) + eighth(1)) + (eighth(2) + eighth(3))) + ((eighth(4) + eighth(5)) + (eighth(6) + eighth(7)));
}

// A rough mean of a run: of its first lanes, as the sum begins there too. A leap ahead would cost more than a worse guess: the
// processor fetches ahead what is read in order.
template <class T> inline acc_t<T> guess_center(const T* x, int64_t n) {
  using V = Lanes<acc_t<T>>;
  constexpr int W = lane_count<acc_t<T>>;
  return n < W ? mean_of_eight(x, n, 1) : lane_sum(load_as(x, V{}) * (acc_t<T>(1) / W));
}

// Whether the mean lies `offset` from the centre of these sums, which is too far: most of `square` comes from it.
inline bool is_poor_center(double offset, double square, double share) { return offset * offset > 0.75 * share * square; }

// Sums about a centre lose precision if it is off by much more than the deviation; it is then moved, to the mean that it
// led to, and the block summed again.
template <class A> inline bool move_poor_center(A& center, A sum, A square, double share) {
  const double offset = sum * share;
  const A better = static_cast<A>(center + offset);
  const bool poor = is_poor_center(offset, square, share) && better != center;
  center = poor ? better : center;
  return poor;
}

template <class T> inline void run_moments(const T* x, int64_t n, double* mean, double* m2) {
  using A = acc_t<T>;
  *mean = *m2 = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const T* p = x + begin;
    const int64_t m = n - begin < kBlock ? n - begin : kBlock;
    const double share = 1.0 / static_cast<double>(m);
    A center = begin == 0 ? guess_center(p, m) : static_cast<A>(*mean);
    const auto term = [&center](auto v) { v -= center; return Pair<decltype(v)>{v, v * v}; };
    Pair<A> sums = sum_row(m, term, p);
    for (int tries = kTries; tries > 0 && move_poor_center(center, sums.first, sums.second, share); --tries)
      sums = sum_row(m, term, p);
    const double offset = sums.first * share;
    merge(*mean, *m2, begin, center + offset, sums.second - offset * sums.first, m);
  }
}

// Of short runs, several at once.
template <class T> void short_run_moments(const T* x, const Runs& runs, double* mean, double* m2) {
  using A = acc_t<T>;
  constexpr int R = kRowsAtOnce<A>;
  const int64_t n = runs.length;
  const double share = 1.0 / static_cast<double>(n);
  for (int64_t i = 0; i < runs.count; i += R) {
    const int rows = static_cast<int>(runs.count - i < R ? runs.count - i : R);
    A center[R];
    const auto sums_about = [&](int j, A c) {
      return partial_sums(n, [c](auto v) { v -= c; return Pair<decltype(v)>{v, v * v}; }, x + (i + j) * n);
    };
    RowSums<A> sums = sum_rows<A>(rows, [&](int j) { return sums_about(j, center[j] = guess_center(x + (i + j) * n, n)); });
    for (int j = 0; j < rows; ++j) {
      for (int tries = kTries; tries > 0 && move_poor_center(center[j], sums.first[j], sums.second[j], share); --tries) {
        const auto again = sum_rows<A>(1, [&](int) { return sums_about(j, center[j]); });
        sums.first[j] = again.first[0], sums.second[j] = again.second[0];
      }
      const double offset = sums.first[j] * share;
      mean[i + j] = center[j] + offset;
      m2[i + j] = sums.second[j] - offset * sums.first[j];
    }
  }
}

template <class T> void row_moments(const T* x, const Runs& runs, double* mean, double* m2) {
  if (0 < runs.length && runs.length <= kBlock) return short_run_moments(x, runs, mean, m2);
  for (int64_t i = 0; i < runs.count; ++i) run_moments(x + i * runs.length, runs.length, mean + i, m2 + i);
}

template <class T> void row_apply(const T* x, T* y, const Runs& runs, const Affine<acc_t<T>>& affine, const Activation& activation) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    for (int64_t i = 0, at = 0; i < runs.count; ++i, at += runs.length) {
      const A center = affine.center[i], scale = affine.scale[i], shift = affine.shift[i];
      map_row(runs.length, [=](auto v) { return activate<kind.value>((v - center) * scale + shift, slope); }, y + at, x + at);
    }
  });
}

template <class T>
void row_grad_sums(const T* g, const T* x, const Runs& runs, const acc_t<T>* mean, const Affine<acc_t<T>>& affine,
                   const Activation& activation, double* s1, double* s2) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    constexpr int R = kRowsAtOnce<A>;
    const int64_t n = runs.length;
    for (int64_t i = 0; i < runs.count; i += R) {
      const int rows = static_cast<int>(runs.count - i < R ? runs.count - i : R);
      for (int j = 0; j < rows; ++j) s1[i + j] = s2[i + j] = 0;
      for (int64_t begin = 0; begin < n; begin += kBlock) {
        const RowSums<A> sums = sum_rows<A>(rows, [&](int j) {
          const A mu = mean[i + j], center = affine.center[i + j], scale = affine.scale[i + j], shift = affine.shift[i + j];
          const auto term = [=](auto d, auto v) {
            d = activate_grad<kind.value>(d, (v - center) * scale + shift, slope);
            return Pair<decltype(v)>{d, d * (v - mu)};
          };
          const int64_t at = (i + j) * n + begin;
          return partial_sums(n - begin < kBlock ? n - begin : kBlock, term, g + at, x + at);
        });
        for (int j = 0; j < rows; ++j) s1[i + j] += sums.first[j], s2[i + j] += sums.second[j];
      }
    }
  });
}

template <class T>
void row_grad_input(const T* g, const T* x, T* dx, const Runs& runs, const Affine<acc_t<T>>& affine, const Slant<acc_t<T>>& slant,
                    const Activation& activation) {
  using A = acc_t<T>;
  const A leak = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    for (int64_t i = 0, at = 0; i < runs.count; ++i, at += runs.length) {
      const A center = affine.center[i], scale = affine.scale[i], shift = affine.shift[i];
      const A mean = slant.mean[i], slope = slant.slope[i], offset = slant.offset[i];
      const auto value = [=](auto d, auto v) {
        d = activate_grad<kind.value>(d, (v - center) * scale + shift, leak);
        return scale * d + (slope * (v - mean) + offset);
      };
      map_row(runs.length, value, dx + at, g + at, x + at);
    }
  });
}

}  // namespace
}  // namespace normwise
