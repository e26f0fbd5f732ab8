// Kernels for contiguous cells.
//
// Sums run in four independent streams of vectors (`omp simd` licenses just these reductions to be reordered, without
// -ffast-math) over blocks short enough for float32 and for the first-level cache; blocks are merged in float64.
#pragma once

#include "kernels.h"

namespace normwise {
namespace {

constexpr int64_t kBlock = 1024;

template <class A> struct Pair { A first, second; };

// (sum f(i).first, sum f(i).second) over i < n.
template <class A, class F> inline Pair<A> sum_pairs(int64_t n, F f) {
  A a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
  const int64_t quarter = n / 4;
#pragma omp simd reduction(+ : a0, a1, a2, a3, b0, b1, b2, b3)
  for (int64_t i = 0; i < quarter; ++i) {
    const Pair<A> p0 = f(i), p1 = f(i + quarter), p2 = f(i + 2 * quarter), p3 = f(i + 3 * quarter);
    a0 += p0.first; a1 += p1.first; a2 += p2.first; a3 += p3.first;
    b0 += p0.second; b1 += p1.second; b2 += p2.second; b3 += p3.second;
  }
  for (int64_t i = 4 * quarter; i < n; ++i) {
    const Pair<A> p = f(i);
    a0 += p.first;
    b0 += p.second;
  }
  return {(a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3)};
}

// Merges a block's (count, mean, m2) into a running one (Chan, Golub & LeVeque 1979).
inline void merge(double& mean, double& m2, int64_t count, double block_mean, double block_m2, int64_t block_count) {
  const double share = static_cast<double>(block_count) / static_cast<double>(count + block_count);
  const double delta = block_mean - mean;
  mean = count == 0 ? block_mean : mean + delta * share;
  m2 = count == 0 ? block_m2 : m2 + block_m2 + delta * delta * share * static_cast<double>(count);
}

template <class T> void row_moments(const T* x, int64_t n, double* mean, double* m2) {
  using A = acc_t<T>;
  *mean = *m2 = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const T* p = x + begin;
    const int64_t m = n - begin < kBlock ? n - begin : kBlock;
    // Twice over the block while it is in cache: a rough centre (relative to the first value, which makes it exact for
    // constant input), then sums about that centre, whose own residual corrects both mean and deviation.
    const A first = load(p[0]);
    const A rough = first + sum_pairs<A>(m, [=](int64_t i) { return Pair<A>{load(p[i]) - first, 0}; }).first / A(m);
    const Pair<A> sums = sum_pairs<A>(m, [=](int64_t i) {
      const A d = load(p[i]) - rough;
      return Pair<A>{d, d * d};
    });
    const double residual = static_cast<double>(sums.first) / static_cast<double>(m);
    merge(*mean, *m2, begin, rough + residual, sums.second - residual * sums.first, m);
  }
}

template <class T> void row_apply(const T* x, T* y, int64_t n, Affine<acc_t<T>> affine, Activation activation) {
  using A = acc_t<T>;
  const A center = *affine.center, scale = *affine.scale, shift = *affine.shift, slope = A(activation.slope);
  with_activation(activation.kind, [=](auto kind) {
    const T* __restrict from = x;
    T* __restrict to = y;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) store(to + i, activate<kind.value>((load(from[i]) - center) * scale + shift, slope));
  });
}

template <class T>
void row_grad_sums(const T* g, const T* x, int64_t n, const acc_t<T>* mean, Affine<acc_t<T>> affine,
                   Activation activation, double* s1, double* s2) {
  using A = acc_t<T>;
  const A mu = *mean, center = *affine.center, scale = *affine.scale, shift = *affine.shift, slope = A(activation.slope);
  with_activation(activation.kind, [=](auto kind) {
    *s1 = *s2 = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const T *gp = g + begin, *xp = x + begin;
      const Pair<A> sums = sum_pairs<A>(n - begin < kBlock ? n - begin : kBlock, [=](int64_t i) {
        const A v = load(xp[i]);
        const A d = activate_grad<kind.value>(A(load(gp[i])), (v - center) * scale + shift, slope);
        return Pair<A>{d, d * (v - mu)};
      });
      *s1 += sums.first;
      *s2 += sums.second;
    }
  });
}

template <class T>
void row_grad_input(const T* g, const T* x, T* dx, int64_t n, Affine<acc_t<T>> affine, Slant<acc_t<T>> slant,
                    Activation activation) {
  using A = acc_t<T>;
  const A center = *affine.center, scale = *affine.scale, shift = *affine.shift, leak = A(activation.slope);
  const A mean = *slant.mean, slope = *slant.slope, offset = *slant.offset;
  with_activation(activation.kind, [=](auto kind) {
    const T *__restrict gp = g, *__restrict xp = x;
    T* __restrict to = dx;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A v = load(xp[i]);
      const A d = activate_grad<kind.value>(A(load(gp[i])), (v - center) * scale + shift, leak);
      store(to + i, scale * d + (slope * (v - mean) + offset));
    }
  });
}

}  // namespace
}  // namespace normwise
