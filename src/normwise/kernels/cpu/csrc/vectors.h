// Kernels for vectors that are normalized by themselves: the last axes of layer norm and of RMS norm, the groups of (N, C).
//
// Every element has a weight of its own here, so what normalizes it is not written down before it is used: that would take
// longer than using it.
#pragma once

#include <algorithm>

#include "rows.h"

namespace normwise {
namespace {

constexpr int64_t kCacheElements = 4096;  // of vectors that are read twice: what the first-level cache holds
constexpr int kBundle = 4;                // vectors that go through the backward pass together, as they share their weights

// What normalizes a vector; 0 does where its variance overflowed, and nothing is subtracted that could overflow too. What rounding takes from the centre goes into the shift; what it takes from the scale, which only
// float32 output would show, is a coefficient of its own.
template <class A> struct Standard {
  A center, scale, rest, shift;
  Standard() = default;
  Standard(double mean, double rstd)
      : center(static_cast<A>(rstd == 0 ? 0 : mean)), scale(static_cast<A>(rstd)), rest(static_cast<A>(rstd - static_cast<double>(scale))),
        shift(static_cast<A>((static_cast<double>(center) - mean) * rstd)) {}
};
template <class T, class V> inline V standardized(V v, const Standard<acc_t<T>>& by) {
  v -= by.center;
  if constexpr (std::is_same_v<T, float>) return v * by.scale + (v * by.rest + by.shift);
  else return v * by.scale + by.shift;
}

// Calls f(load, store, keep) for the registers of the elements from `begin` to `end`: load(p) gives those of p, store(p, v)
// writes them. The last has fewer elements than lanes, with 0 in the place of the others; keep(v) has it of any v, where what was
// computed from these 0 may be infinite.
template <class A, class F> inline void for_lanes(int64_t begin, int64_t end, F f) {
  constexpr int64_t W = lane_count<A>;
  int64_t i = begin;
  for (; i + W <= end; i += W)
    f([=](const auto* p) { return load_as(p + i, Lanes<A>{}); },
      [=](auto* p, Lanes<A> v, bool streams = false) { store_as(p + i, v, streams); }, [](Lanes<A> v) { return v; });
  if (const int64_t count = end - i; count > 0)
    f([=](const auto* p) { return load_first(p + i, count, Lanes<A>{}); },
      [=](auto* p, Lanes<A> v, bool = false) { store_first(p + i, count, v); },
      [=](Lanes<A> v) { return only_first<A>(v, static_cast<int>(count)); });
}

// Sums of squares, for what is not centred.
template <class T> inline void vector_squares(const T* x, const Runs& runs, double* mean, double* m2) {
  using A = acc_t<T>;
  const int64_t n = runs.length;
  std::fill_n(mean, runs.count, 0.0);
  if (n <= kBlock)
    return together(runs.count, [&](int64_t i, int count) {
      put_together(m2 + i, count, sums_together<A>(count, [&](int r) { return sums_about(A(0), x + (i + r) * n, n); }).second);
    });
  for (int64_t i = 0; i < runs.count; ++i) {
    m2[i] = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock)
      m2[i] += lane_sum(sums_about(A(0), x + i * n + begin, std::min(kBlock, n - begin)).second);
  }
}

template <class T>
NORMWISE_KERNEL void vector_norm(const T* x, T* y, const Vectors& of, const Learned<acc_t<T>>& given, const Activation& activation,
                                 double* mean, double* var) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  const int64_t n = of.length, all = of.samples * of.groups, most = std::clamp<int64_t>(kCacheElements / n, 1, kTogether);
  with_activation(activation.kind, [&](auto kind) {
    for (int64_t first = 0; first < all; first += most) {
      const Runs runs{std::min(most, all - first), n};
      if (of.centered) row_moments(x + first * n, runs, mean + first, var + first);
      else vector_squares(x + first * n, runs, mean + first, var + first);
      for (int64_t i = first; i < first + runs.count; ++i) {
        var[i] /= static_cast<double>(n);
        const Standard<A> by(mean[i], 1 / std::sqrt(var[i] + of.eps));
        const int64_t channel = i % of.groups * n;
        const A *weight = given.weight + channel, *bias = given.bias + channel;
        const T* from = x + i * n;
        T* to = y + i * n;
        for_lanes<A>(0, n, [=, streams = of.streams](auto load, auto store, auto) {
          store(to, activate<kind.value>(standardized<T>(load(from), by) * load(weight) + load(bias), slope), streams);
        });
      }
    }
  });
  if (of.streams) finish_streaming();
}

// The same group of some samples, each `stride` elements after the one before.
template <class T> struct Bundle {
  using A = acc_t<T>;
  const T *g, *x;
  T* dx;
  int64_t length, stride;
  const A *weight, *bias;
  A leak;
  Standard<A> by[kBundle];
  A tilt[kBundle], offset[kBundle];  // dx = scale * g' * weight + tilt * normalized + offset

  // Of some elements of vector r: the normalized values, and the gradients that come out of the activation.
  template <Act kind, class Load> Pair<Lanes<A>> elements(int r, Load load) const {
    const auto v = standardized<T>(load(x + r * stride), by[r]);
    return {v, activate_grad<kind>(load(g + r * stride), v * load(weight) + load(bias), leak)};
  }

  // The coefficients of dx.
  template <int count, Act kind> void solve(bool centered, const double* rstd) {
    double total[count] = {}, dot[count] = {};
    for (int64_t begin = 0; begin < length; begin += kBlock) {
      Lanes<A> totals[count] = {}, dots[count] = {};
      for_lanes<A>(begin, std::min(begin + kBlock, length), [&](auto load, auto, auto keep) {
        for (int r = 0; r < count; ++r) {
          const auto [v, d] = elements<kind>(r, load);
          const auto weighted = d * load(weight);
          totals[r] += keep(weighted), dots[r] += keep(weighted * v);
        }
      });
      for (int r = 0; r < count; ++r) total[r] += lane_sum(totals[r]), dot[r] += lane_sum(dots[r]);
    }
    for (int r = 0; r < count; ++r) {
      const double share = -rstd[r] / static_cast<double>(length);
      tilt[r] = static_cast<A>(share * dot[r]);
      offset[r] = static_cast<A>(centered ? share * total[r] : 0);
    }
  }

  // Writes dx, and adds to the gradients of the parameters.
  template <int count, Act kind> void write(bool streams, A* grad_weight, A* grad_bias) const {
    for_lanes<A>(0, length, [&](auto load, auto store, auto) {
      Lanes<A> of_weight{}, of_bias{};
      for (int r = 0; r < count; ++r) {
        const auto [v, d] = elements<kind>(r, load);
        store(dx + r * stride, by[r].scale * (d * load(weight)) + (v * tilt[r] + offset[r]), streams);
        of_weight += d * v, of_bias += d;
      }
      store(grad_weight, load(grad_weight) + of_weight), store(grad_bias, load(grad_bias) + of_bias);
    });
  }
};

template <class T>
NORMWISE_KERNEL void vector_norm_grad(const T* g, const T* x, T* dx, const Vectors& of, const Learned<acc_t<T>>& given,
                                      const Activation& activation, const double* mean, const double* var, acc_t<T>* grad_weight,
                                      acc_t<T>* grad_bias) {
  using A = acc_t<T>;
  const int64_t n = of.length, stride = of.groups * n;
  with_activation(activation.kind, [&](auto kind) {
    const auto differentiate = [&](auto count, int64_t sample, int64_t group) {
      const int64_t at = sample * stride + group * n, channel = group * n;
      Bundle<T> bundle{g + at, x + at, dx + at, n, stride, given.weight + channel, given.bias + channel, A(activation.slope), {}, {}, {}};
      double rstd[count.value];
      for (int r = 0; r < count.value; ++r) {
        const int64_t i = (sample + r) * of.groups + group;
        rstd[r] = 1 / std::sqrt(var[i] + of.eps);
        bundle.by[r] = Standard<A>(mean[i], rstd[r]);
      }
      bundle.template solve<count.value, kind.value>(of.centered, rstd);
      bundle.template write<count.value, kind.value>(of.streams, grad_weight + channel, grad_bias + channel);
    };
    int64_t sample = 0;
    for (; sample + kBundle <= of.samples; sample += kBundle)
      for (int64_t group = 0; group < of.groups; ++group) differentiate(std::integral_constant<int, kBundle>{}, sample, group);
    for (; sample < of.samples; ++sample)
      for (int64_t group = 0; group < of.groups; ++group) differentiate(std::integral_constant<int, 1>{}, sample, group);
  });
  if (of.streams) finish_streaming();
}

}  // namespace
}  // namespace normwise
