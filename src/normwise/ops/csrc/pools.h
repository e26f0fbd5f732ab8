// The light work of what pools within a sample, in float64: from the moments of a group's parts to what normalizes its
// channels, and from the sums of its gradients to the coefficients of dx. With short cells it takes as long as they do.
#pragma once

#include <cmath>

#include "kernels.h"
#include "light.h"

namespace normwise {
namespace {

// The groups' moments, pooled from those of their equal parts by the law of total variance, and the affine of their channels.
template <class T>
void pool_groups(const Pools& p, const double* mu, const double* m2, const Learned<acc_t<T>>& given, double* mean, double* var,
                 const ChannelAffine<acc_t<T>>& to) {
  using A = acc_t<T>;
  const double size = p.size, eps = p.eps, part_size = size / static_cast<double>(p.parts);
  if (p.channels == 1) {  // a loop over groups, which the compiler vectorizes
    const A *weight = given.weight, *bias = given.bias;
    A *__restrict center = to.center, *__restrict scale = to.scale, *__restrict shift = to.shift;
    double *__restrict to_mean = mean, *__restrict to_var = var;
    for (int64_t i = 0; i < p.count; ++i) {
      const double variance = m2[i] / size;
      to_mean[i] = mu[i];
      to_var[i] = variance;
      normalizing(mu[i], variance, weight[i] / std::sqrt(variance + eps), bias[i], center[i], scale[i], shift[i]);
    }
    return;
  }
  for (int64_t group = 0, first = 0; group < p.count; ++group, first += p.channels, mu += p.parts, m2 += p.parts) {
    const double pooled = mu[0] + total(p.parts, [=](int64_t i) { return mu[i] - mu[0]; }) / static_cast<double>(p.parts);
    const auto square = [=](int64_t i) { return m2[i] + part_size * (mu[i] - pooled) * (mu[i] - pooled); };
    const double variance = total(p.parts, square) / size, rstd = 1 / std::sqrt(variance + eps);
    mean[group] = pooled;
    var[group] = variance;
    const A *weight = given.weight + first, *bias = given.bias + first;
    A *__restrict center = to.center + first, *__restrict scale = to.scale + first, *__restrict shift = to.shift + first;
    for (int64_t i = 0; i < p.channels; ++i)
      normalizing(pooled, variance, rstd * weight[i], bias[i], center[i], scale[i], shift[i]);
  }
}

// What the backward pass wants again of the forward pass, a channel: the group's mean, rounded, to take sums about, and what
// normalizes about that. What rounding took from the mean goes into the shift.
template <class T>
void repeat_groups(const Pools& p, const double* mean, const double* var, const Learned<acc_t<T>>& given,
                   const ChannelAffine<acc_t<T>>& to) {
  using A = acc_t<T>;
  const double eps = p.eps;
  if (p.channels == 1) {
    const A *weight = given.weight, *bias = given.bias;
    A *__restrict center = to.center, *__restrict scale = to.scale, *__restrict shift = to.shift;
    for (int64_t i = 0; i < p.count; ++i)
      normalizing_about(mean[i], mean[i], weight[i] / std::sqrt(var[i] + eps), bias[i], center[i], scale[i], shift[i]);
    return;
  }
  for (int64_t group = 0, first = 0; group < p.count; ++group, first += p.channels) {
    const double mu = mean[group], rstd = 1 / std::sqrt(var[group] + eps);
    const A *weight = given.weight + first, *bias = given.bias + first;
    A *__restrict center = to.center + first, *__restrict scale = to.scale + first, *__restrict shift = to.shift + first;
    for (int64_t i = 0; i < p.channels; ++i) normalizing_about(mu, mu, rstd * weight[i], bias[i], center[i], scale[i], shift[i]);
  }
}

// From the cells' sums of g' and g' * (x - center) to the coefficients of dx; leaves the latter as sums of g' * (x - mean) / std.
template <class T>
void solve_groups(const Pools& p, const double* mean, const double* var, const acc_t<T>* center, const acc_t<T>* weight,
                  const double* s1, double* s2, acc_t<T>* to_slope, acc_t<T>* to_offset) {
  using A = acc_t<T>;
  const double size = p.size, eps = p.eps;
  if (p.channels == 1) {
    A *__restrict slope = to_slope, *__restrict offset = to_offset;
    double* __restrict two = s2;
    for (int64_t i = 0; i < p.count; ++i) {
      const double rstd = 1 / std::sqrt(var[i] + eps), scale = -rstd * weight[i] / size, lost = center[i] - mean[i];
      two[i] = (two[i] + lost * s1[i]) * rstd;
      const double tilt = scale * rstd * two[i];
      slope[i] = static_cast<A>(tilt);
      offset[i] = static_cast<A>(scale * s1[i] + tilt * lost);
    }
    return;
  }
  for (int64_t group = 0, first = 0; group < p.count; ++group, first += p.channels) {
    const double rstd = 1 / std::sqrt(var[group] + eps), lost = center[first] - mean[group], *one = s1 + first;
    double* __restrict two = s2 + first;
    const A* of = weight + first;
    for (int64_t i = 0; i < p.channels; ++i) two[i] = (two[i] + lost * one[i]) * rstd;
    const double sum = total(p.channels, [=](int64_t i) { return of[i] * one[i]; });
    const double dot = total(p.channels, [=](int64_t i) { return of[i] * two[i]; });
    const double tilt = -rstd * rstd * dot / size;
    const A slope = static_cast<A>(tilt), offset = static_cast<A>(tilt * lost - rstd * sum / size);
    for (int64_t i = 0; i < p.channels; ++i) to_slope[first + i] = slope, to_offset[first + i] = offset;
  }
}

// What normalizes channels by their own moments.
template <class T>
void channel_affine(int64_t count, const double* mean, const double* var, double eps, const Learned<acc_t<T>>& given,
                    const ChannelAffine<acc_t<T>>& to) {
  using A = acc_t<T>;
  const A *weight = given.weight, *bias = given.bias;
  A *__restrict center = to.center, *__restrict scale = to.scale, *__restrict shift = to.shift;
  for (int64_t i = 0; i < count; ++i)
    normalizing(mean[i], var[i], weight[i] / std::sqrt(var[i] + eps), bias[i], center[i], scale[i], shift[i]);
}

}  // namespace
}  // namespace normwise
