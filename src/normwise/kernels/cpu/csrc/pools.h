// The light work of what pools within a sample, in float64: from the moments of a group's parts to what normalizes its
// channels, and from the sums of its gradients to the coefficients of dx. With short cells it takes as long as they do, unless
// the compiler makes lanes of channels; `omp simd` tells it that the arrays are separate.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "light.h"

namespace normwise {
namespace {

// The groups' moments, pooled from those of their equal parts by the law of total variance, and the affine of their channels.
template <class T>
void pool_groups(const Pools& p, const double* mu, const double* m2, const Learned<acc_t<T>>& given, double* mean, double* var,
                 const ChannelAffine<acc_t<T>>& to) {
  const double size = p.size, eps = p.eps, part_size = size / static_cast<double>(p.parts);
  if (p.channels == 1) {  // a loop over groups
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) {
      mean[i] = mu[i];
      var[i] = m2[i] / size;
      normalize(mean[i], var[i], given.weight[i] / std::sqrt(var[i] + eps), given.bias[i], to, i);
    }
    return;
  }
  for (int64_t group = 0, first = 0; group < p.count; ++group, first += p.channels, mu += p.parts, m2 += p.parts) {
    const double pooled = mu[0] + total(p.parts, [=](int64_t i) { return mu[i] - mu[0]; }) / static_cast<double>(p.parts);
    const auto square = [=](int64_t i) { return m2[i] + part_size * (mu[i] - pooled) * (mu[i] - pooled); };
    const double variance = total(p.parts, square) / size, rstd = 1 / std::sqrt(variance + eps);
    mean[group] = pooled;
    var[group] = variance;
#pragma omp simd
    for (int64_t i = first; i < first + p.channels; ++i) normalize(pooled, variance, rstd * given.weight[i], given.bias[i], to, i);
  }
}

// What the backward pass wants again of the forward pass, a channel: what normalizes it, and the group's mean, rounded, to take
// sums about.
template <class T>
void repeat_groups(const Pools& p, const double* mean, const double* var, const Learned<acc_t<T>>& given,
                   const ChannelAffine<acc_t<T>>& to, acc_t<T>* about) {
  using A = acc_t<T>;
  const double eps = p.eps;
  if (p.channels == 1) {
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) {
      about[i] = static_cast<A>(mean[i]);
      normalize(mean[i], var[i], given.weight[i] / std::sqrt(var[i] + eps), given.bias[i], to, i);
    }
    return;
  }
  for (int64_t group = 0, first = 0; group < p.count; ++group, first += p.channels) {
    const double mu = mean[group], variance = var[group], rstd = 1 / std::sqrt(variance + eps);
    std::fill_n(about + first, p.channels, static_cast<A>(mu));
#pragma omp simd
    for (int64_t i = first; i < first + p.channels; ++i) normalize(mu, variance, rstd * given.weight[i], given.bias[i], to, i);
  }
}

// The sum of g' * (x - mean) / std, from one about the rounded mean; 0 where the variance overflowed, as that sum may have.
template <class A> inline double normalized_sum(double about_rounded, double sum, double mean, double rstd) {
  const double lost = static_cast<double>(static_cast<A>(mean)) - mean;
  return rstd == 0 ? 0 : (about_rounded + lost * sum) * rstd;
}

// From the cells' sums of g' and g' * (x - mean), about the rounded mean, to the coefficients of dx; leaves the latter as sums
// of g' * (x - mean) / std.
template <class T>
void solve_groups(const Pools& p, const double* mean, const double* var, const acc_t<T>* center, const acc_t<T>* weight,
                  const double* s1, double* s2, acc_t<T>* slope, acc_t<T>* offset) {
  using A = acc_t<T>;
  const double size = p.size, eps = p.eps;
  if (p.channels == 1) {
#pragma omp simd
    for (int64_t i = 0; i < p.count; ++i) {
      const double rstd = 1 / std::sqrt(var[i] + eps), scale = -rstd * weight[i] / size;
      s2[i] = normalized_sum<A>(s2[i], s1[i], mean[i], rstd);
      const double tilt = scale * rstd * s2[i];
      slope[i] = static_cast<A>(tilt);
      offset[i] = static_cast<A>(scale * s1[i] + tilt * (center[i] - mean[i]));
    }
    return;
  }
  for (int64_t group = 0, first = 0; group < p.count; ++group, first += p.channels) {
    const double mu = mean[group], rstd = 1 / std::sqrt(var[group] + eps), *one = s1 + first;
    double* two = s2 + first;
    const A* of = weight + first;
#pragma omp simd
    for (int64_t i = 0; i < p.channels; ++i) two[i] = normalized_sum<A>(two[i], one[i], mu, rstd);
    const double sum = total(p.channels, [=](int64_t i) { return of[i] * one[i]; });
    const double dot = total(p.channels, [=](int64_t i) { return of[i] * two[i]; });
    const double tilt = -rstd * rstd * dot / size;
    std::fill_n(slope + first, p.channels, static_cast<A>(tilt));
    std::fill_n(offset + first, p.channels, static_cast<A>(tilt * (center[first] - mu) - rstd * sum / size));
  }
}

// What normalizes channels by their own moments.
template <class T>
void channel_affine(int64_t count, const double* mean, const double* var, double eps, const Learned<acc_t<T>>& given,
                    const ChannelAffine<acc_t<T>>& to) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) normalize(mean[i], var[i], given.weight[i] / std::sqrt(var[i] + eps), given.bias[i], to, i);
}

}  // namespace
}  // namespace normwise
