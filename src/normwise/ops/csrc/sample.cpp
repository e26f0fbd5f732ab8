#include "sample.h"

#include <unistd.h>

#include <cmath>

#include "cells.h"

namespace normwise {
namespace {

// A fused task's share of x, so that its second pass finds the first one's data in the second-level cache.
constexpr int64_t kRowTaskBytes = 16 * 1024;  // of contiguous cells, where groups are short: the first-level cache
// In the columns layout tasks are whole samples: with parts of rows, what is saved by the cache is lost by leaping in memory.
// Up to half of the second-level cache, where that is known.
int64_t column_task_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = std::max<int64_t>(512 * 1024, sysconf(_SC_LEVEL2_CACHE_SIZE) / 2);
  return bytes;
#else
  return 512 * 1024;
#endif
}

// Below this many elements a cell's own mean is not worth its overhead: a group in one piece is summed as one row.
constexpr int64_t kShortRow = 1024;

template <class A> struct Scratch {
  Buffer<double> sums;
  Buffer<A> affine;
  explicit Scratch(int64_t cells) : sums(2 * cells), affine(5 * cells) {}
};

// What both directions know: x cut into (sample, group)s, and the affine around them.
template <class T> struct Groups {
  using A = acc_t<T>;
  const Cells& x;
  int64_t G, channels;  // per group
  double eps;
  Activation act;
  Parameters<A> parameters;

  Groups(const Cells& x, int64_t G, const std::optional<Tensor>& w, const std::optional<Tensor>& b, double eps, Activation act)
      : x(x), G(G), channels(x.C / std::max<int64_t>(1, G)), eps(eps), act(act), parameters(x, w, b) {
    STD_TORCH_CHECK(G > 0 && x.C % G == 0, "normwise: ", x.C, " channels cannot be divided into ", G, " groups");
  }

  double group_size() const { return static_cast<double>(std::max<int64_t>(1, channels * x.M)); }

  // Channels of a task: whole groups, as many as the cache takes.
  int64_t task_width() const {
    const int64_t bytes = std::max<int64_t>(1, x.M * int64_t{sizeof(T)});
    return x.columns ? x.C : std::clamp<int64_t>(kRowTaskBytes / bytes / channels, 1, G) * channels;
  }

  // Runs task(n, c, width) over all of x in parallel; false, and nothing done, if that would leave threads idle or profit
  // from no cache.
  template <class F> bool run(F task) const {
    const int64_t width = task_width(), tasks = (x.C + width - 1) / width;
    const bool idle = x.N * tasks < static_cast<int64_t>(torch::stable::get_num_threads()) && x.numel() > 2 * kGrain;
    if (idle || (x.columns && x.M * x.C * int64_t{sizeof(T)} > column_task_bytes())) return false;
    parallel(x.N * tasks, width * x.M, [&](int64_t begin, int64_t end) {
      Scratch<A> scratch(width);
      for_pairs(begin, end, tasks, [&](int64_t n, int64_t t) {
        task(n, t * width, std::min(width, x.C - t * width), scratch);
      });
    });
    return true;
  }
};

template <class T> struct Forward : Groups<T> {
  using typename Groups<T>::A;
  using Groups<T>::Groups, Groups<T>::x, Groups<T>::channels;
  A *mean, *var;  // (N, G)

  // How many parts of equal size a group's moments are pooled from: its cells, or only itself.
  int64_t parts() const { return x.columns || x.M >= kShortRow ? channels : 1; }

  // The groups' moments, pooled from those of their `parts` equal parts by the law of total variance, and the affine that
  // normalizes with them.
  void pool(int64_t n, int64_t c, int64_t width, const double* mu, const double* m2, A* center, A* scale, A* shift) const {
    if (channels == 1) return pool_cells(n, c, width, mu, m2, center, scale, shift);
    const int64_t parts = this->parts();
    const double part_size = this->group_size() / static_cast<double>(parts);
    const A *weight = this->parameters.weights(n) + c, *bias = this->parameters.biases(n) + c;
    int64_t group = n * this->G + c / channels;
    for (int64_t first = 0; first < width; first += channels, mu += parts, m2 += parts, ++group) {
      const double pooled = mu[0] + total(parts, [=](int64_t i) { return mu[i] - mu[0]; }) / static_cast<double>(parts);
      const auto square = [=](int64_t i) { return m2[i] + part_size * (mu[i] - pooled) * (mu[i] - pooled); };
      const double variance = total(parts, square) / this->group_size(), rstd = 1 / std::sqrt(variance + this->eps);
      mean[group] = static_cast<A>(pooled);
      var[group] = static_cast<A>(variance);
      A *__restrict c = center + first, *__restrict s = scale + first, *__restrict t = shift + first;
      for (int64_t i = 0; i < channels; ++i)
        normalizing(pooled, variance, rstd * weight[first + i], bias[first + i], c[i], s[i], t[i]);
    }
  }

  // The same where each cell is a group: a loop that the compiler vectorizes.
  void pool_cells(int64_t n, int64_t c, int64_t width, const double* mu, const double* m2, A* __restrict center,
                  A* __restrict scale, A* __restrict shift) const {
    const A *weight = this->parameters.weights(n) + c, *bias = this->parameters.biases(n) + c;
    A *__restrict to_mean = mean + n * x.C + c, *__restrict to_var = var + n * x.C + c;
    const double share = 1 / this->group_size(), eps = this->eps;
    for (int64_t i = 0; i < width; ++i) {
      const double variance = m2[i] * share;
      to_mean[i] = static_cast<A>(mu[i]);
      to_var[i] = static_cast<A>(variance);
      normalizing(mu[i], variance, weight[i] / std::sqrt(variance + eps), bias[i], center[i], scale[i], shift[i]);
    }
  }

  void fused(const Tensor& y, int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) const {
    const auto& k = kernels<T>();
    const int64_t at = offset(x, n, c);
    const T* from = const_data<T>(x.tensor) + at;
    T* to = data<T>(y) + at;
    double *mu = scratch.sums.data(), *m2 = mu + width;
    A *center = scratch.affine.data(), *scale = center + width, *shift = scale + width;
    const Affine<A> affine{center, scale, shift};
    if (x.columns) {
      for (int64_t i = 0; i < width; i += kTileWidth)
        k.column_moments(from + i, tile(x, std::min(kTileWidth, width - i)), mu + i, m2 + i);
      pool(n, c, width, mu, m2, center, scale, shift);
      k.column_apply(from, to, tile(x, width), affine, this->act);
    } else {
      const int64_t count = width / channels * parts(), size = width * x.M / count;
      k.row_moments(from, {count, size}, mu, m2);
      pool(n, c, width, mu, m2, center, scale, shift);
      k.row_apply(from, to, runs(x, width), affine, this->act);
    }
  }

  void operator()(const Tensor& y) const {
    if (this->run([&](int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) { fused(y, n, c, width, scratch); })) return;
    const int64_t cells = x.N * x.C;
    Scratch<A> scratch(cells);
    double *mu = scratch.sums.data(), *m2 = mu + cells;
    A *center = scratch.affine.data(), *scale = center + cells, *shift = scale + cells;
    const int64_t each = this->G * parts();
    if (each == x.C) {
      all_moments<T>(x, mu, m2);
    } else {
      const auto& k = kernels<T>();
      const T* from = const_data<T>(x.tensor);
      const int64_t size = channels * x.M;
      parallel(x.N * each, size, [&](int64_t begin, int64_t end) {
        k.row_moments(from + begin * size, {end - begin, size}, mu + begin, m2 + begin);
      });
    }
    for (int64_t n = 0; n < x.N; ++n) {
      const int64_t i = n * x.C;
      pool(n, 0, x.C, mu + n * each, m2 + n * each, center + i, scale + i, shift + i);
    }
    all_apply<T>(x, y, [&](int64_t n) { return Affine<A>{center, scale, shift} + n * x.C; }, this->act);
  }
};

template <class T> struct Backward : Groups<T> {
  using typename Groups<T>::A;
  using Groups<T>::Groups, Groups<T>::x, Groups<T>::channels;
  const A *mean, *var;      // (N, G)
  double *s1, *s2;          // (N, C): sums of g' and of g' * (x - mean) / std

  struct Arrays {
    A *mean, *scale, *shift, *slope, *offset;
    Arrays(A* memory, int64_t cells)
        : mean(memory), scale(mean + cells), shift(scale + cells), slope(shift + cells), offset(slope + cells) {}
    Affine<A> affine() const { return {mean, scale, shift}; }
    Slant<A> slant() const { return {mean, slope, offset}; }
  };

  double rstd(int64_t group) const { return 1 / std::sqrt(static_cast<double>(var[group]) + this->eps); }

  void recompute(int64_t n, int64_t c, int64_t width, Arrays a) const {
    const A *weight = this->parameters.weights(n) + c, *bias = this->parameters.biases(n) + c;
    int64_t group = n * this->G + c / channels;
    if (channels == 1) {
      const A* of = var + group;
      A* __restrict scale = a.scale;
      const double eps = this->eps;
      for (int64_t i = 0; i < width; ++i) scale[i] = static_cast<A>(weight[i] / std::sqrt(of[i] + eps));
      std::copy_n(mean + group, width, a.mean);
      std::copy_n(bias, width, a.shift);
      return;
    }
    for (int64_t first = 0; first < width; first += channels, ++group) {
      std::fill_n(a.mean + first, channels, mean[group]);
      const double r = rstd(group);
      A* __restrict scale = a.scale + first;  // the compiler would take it for a part of the weight
      for (int64_t i = 0; i < channels; ++i) scale[i] = static_cast<A>(r * weight[first + i]);
    }
    std::copy_n(bias, width, a.shift);
  }

  // From the cells' sums to the coefficients of dx; leaves s2 divided by the standard deviation.
  void solve(int64_t n, int64_t c, int64_t width, Arrays a) const {
    const A* weight = this->parameters.weights(n) + c;
    double *one = s1 + n * x.C + c, *__restrict two = s2 + n * x.C + c;
    int64_t group = n * this->G + c / channels;
    if (channels == 1) {
      const A* of = var + group;
      A *__restrict slope = a.slope, *__restrict offset = a.offset;
      const double share = -1 / this->group_size(), eps = this->eps;
      for (int64_t i = 0; i < width; ++i) {
        const double r = 1 / std::sqrt(of[i] + eps), s = r * weight[i] * share;
        two[i] *= r;
        slope[i] = static_cast<A>(s * r * two[i]);
        offset[i] = static_cast<A>(s * one[i]);
      }
      return;
    }
    for (int64_t first = 0; first < width; first += channels, ++group) {
      const double r = rstd(group);
      for (int64_t i = first; i < first + channels; ++i) two[i] *= r;
      const double sum = total(channels, [=](int64_t i) { return weight[first + i] * one[first + i]; });
      const double dot = total(channels, [=](int64_t i) { return weight[first + i] * two[first + i]; });
      std::fill_n(a.slope + first, channels, static_cast<A>(-r * r * dot / this->group_size()));
      std::fill_n(a.offset + first, channels, static_cast<A>(-r * sum / this->group_size()));
    }
  }

  void fused(const Tensor& g, const Tensor& dx, int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) const {
    const auto& k = kernels<T>();
    const int64_t at = offset(x, n, c);
    const T *gp = const_data<T>(g) + at, *xp = const_data<T>(x.tensor) + at;
    T* to = data<T>(dx) + at;
    double *one = s1 + n * x.C + c, *two = s2 + n * x.C + c;
    const Arrays a(scratch.affine.data(), width);
    recompute(n, c, width, a);
    if (x.columns) {
      for (int64_t i = 0; i < width; i += kTileWidth)
        k.column_grad_sums(gp + i, xp + i, tile(x, std::min(kTileWidth, width - i)), a.mean + i, a.affine() + i, this->act,
                           one + i, two + i);
      solve(n, c, width, a);
      k.column_grad_input(gp, xp, to, tile(x, width), a.affine(), a.slant(), this->act);
    } else {
      k.row_grad_sums(gp, xp, runs(x, width), a.mean, a.affine(), this->act, one, two);
      solve(n, c, width, a);
      k.row_grad_input(gp, xp, to, runs(x, width), a.affine(), a.slant(), this->act);
    }
  }

  void operator()(const Tensor& g, const Tensor& dx) const {
    if (this->run([&](int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) { fused(g, dx, n, c, width, scratch); })) return;
    Scratch<A> scratch(x.N * x.C);
    const Arrays a(scratch.affine.data(), x.N * x.C);
    auto row = [&](int64_t n) {
      Arrays r = a;
      for (A** p : {&r.mean, &r.scale, &r.shift, &r.slope, &r.offset}) *p += n * x.C;
      return r;
    };
    for (int64_t n = 0; n < x.N; ++n) recompute(n, 0, x.C, row(n));
    all_grad_sums<T>(g, x, [&](int64_t n) { return row(n).mean; }, [&](int64_t n) { return row(n).affine(); }, this->act, s1, s2);
    for (int64_t n = 0; n < x.N; ++n) solve(n, 0, x.C, row(n));
    all_grad_input<T>(g, x, dx, [&](int64_t n) { return row(n).affine(); }, [&](int64_t n) { return row(n).slant(); }, this->act);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> sample_norm(const Tensor& input, int64_t groups, const std::optional<Tensor>& weight,
                                               const std::optional<Tensor>& bias, double eps, int64_t code, double slope) {
  const Cells x(input);
  const ScalarType dtype = acc_type(input.scalar_type());
  Tensor y = x.empty_like(), mean = empty({x.N, groups}, dtype), var = empty({x.N, groups}, dtype);
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Forward<T> forward(x, groups, weight, bias, eps, Activation{static_cast<Act>(code), slope});
    forward.mean = data<acc_t<T>>(mean);
    forward.var = data<acc_t<T>>(var);
    forward(y);
  });
  return {y, mean, var};
}

std::tuple<Tensor, Tensor, Tensor> sample_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& mean,
                                                        const Tensor& var, int64_t groups,
                                                        const std::optional<Tensor>& weight,
                                                        const std::optional<Tensor>& bias, double eps, int64_t code,
                                                        double slope) {
  const Cells x(input);
  const Tensor g = x.match(grad);
  Tensor dx = x.empty_like();
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    Backward<T> backward(x, groups, weight, bias, eps, Activation{static_cast<Act>(code), slope});
    STD_TORCH_CHECK(mean.is_contiguous() && var.is_contiguous() && mean.numel() == x.N * groups && var.numel() == x.N * groups,
                    "normwise: expected mean and var as sample_norm returned them");
    backward.mean = const_data<A>(mean);
    backward.var = const_data<A>(var);
    const Buffer<double> sums(2 * x.N * x.C);
    backward.s1 = sums.data();
    backward.s2 = backward.s1 + x.N * x.C;
    backward(g, dx);
    return std::tuple<Tensor, Tensor, Tensor>{dx, parameter_gradient(x, backward.parameters.weight, backward.s2),
                                              parameter_gradient(x, backward.parameters.bias, backward.s1)};
  });
}

}  // namespace normwise
