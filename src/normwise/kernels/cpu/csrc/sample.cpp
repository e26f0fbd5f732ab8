#include "sample.h"

#include <limits>

#include "caches.h"
#include "cells.h"
#include "layer.h"

namespace normwise {
namespace {

// A fused task's share of x, so that its second pass finds the first one's data in a cache. Of contiguous cells, where groups
// are short, so little that a processor still sums one task while it writes the one before; of short cells backward, where
// three streams would start anew with every task, as much as the second-level cache takes.
constexpr int64_t kTaskBytes = 4 * 1024, kLongTaskBytes = 256 * 1024;
// In the columns layout tasks are whole samples: with parts of rows, what is saved by the cache is lost by leaping in memory.
// Up to half of the second-level cache, where that is known, or an eighth of the last, which others share.
int64_t column_task_bytes() {
  const int64_t last = last_cache_bytes(), known = last < std::numeric_limits<int64_t>::max() ? last / 8 : 0;
  return std::max({int64_t{512} * 1024, second_cache_bytes() / 2, known});
}

// A group in one piece is summed as one row where its cells have fewer elements than this, which would not be worth the
// overhead of their own means; in the columns layout, where only a whole sample is in one piece, in rows no longer than this.
constexpr int64_t kShortRow = 1024, kLongRow = 128 * 1024;
// So many short rows are summed in little more time than one of them.
constexpr int64_t kFewestRows = 4;

template <class A> struct Scratch {
  Buffer<double> sums;
  Buffer<A> affine;
  explicit Scratch(int64_t cells) : sums(2 * cells), affine((3 + ChannelAffine<A>::kArrays) * cells) {}
};

// Calls f(first, count) for parts of `width` cells of a sample, as for_each_run: a group may be larger than the cache.
template <class F> void from_the_end(const Cells& x, int64_t width, F f) {
  by_sample_from_the_end(0, width, width, run_length(x), [&](int64_t, int64_t first, int64_t count) { f(first, count); });
}

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

  // Those of `width` neighbouring channels.
  Pools pools(int64_t width, int64_t parts) const {
    return {width / channels, channels, parts, static_cast<double>(std::max<int64_t>(1, channels * x.M)), eps};
  }

  // Whether there are no spatial axes, and a parameter's values serve all samples: then a group is a vector.
  bool of_vectors() const { return x.M == 1 && channels > 1 && !parameters.per_sample(); }
  Vectors vectors() const { return {x.N, G, channels, eps, true}; }

  // Channels of a task: whole groups of at most so many bytes, and so few that every thread gets several tasks.
  int64_t task_width(int64_t most) const {
    if (x.columns) return x.C;
    const int64_t bytes = std::max<int64_t>(1, x.M * int64_t{sizeof(T)}), share = x.N * x.C * bytes / (4 * thread_count());
    const int64_t groups = std::min(most, share) / bytes / channels, fewest = channels * x.M < kShortRow ? kFewestRows : 1;
    return std::clamp<int64_t>((groups + fewest - 1) / fewest * fewest, 1, G) * channels;
  }

  // Runs task(n, c, width) over all of x in parallel; false, and nothing done, if that would leave threads idle or profit
  // from no cache.
  template <class F> bool run(int64_t most, F task) const {
    const int64_t width = task_width(most), tasks = (x.C + width - 1) / width;
    const bool idle = x.N * tasks < thread_count() && x.numel() > 2 * kGrain;
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
  double *mean, *var;  // (N, G)
  // How many parts of equal size a group's moments are pooled from: its cells, or rows of what is in one piece.
  const int64_t parts = count_parts();

  int64_t count_parts() const {
    if (!x.columns) return x.M < kShortRow ? 1 : channels;
    const int64_t size = x.M * x.C, fewest = size / kLongRow + 1, most = std::min(2 * fewest, channels);
    for (int64_t count = fewest; this->G == 1 && count <= most; ++count)
      if (size % count == 0) return count;
    return channels;
  }

  // What normalizes `width` channels from the moments of their groups' parts.
  void pool(int64_t n, int64_t c, int64_t width, const double* mu, const double* m2, const ChannelAffine<A>& to) const {
    const int64_t group = n * this->G + c / channels;
    const Learned<A> given{this->parameters.weights(n) + c, this->parameters.biases(n) + c};
    kernels<T>().pool_groups(this->pools(width, parts), mu, m2, given, mean + group, var + group, to);
  }

  void fused(const Tensor& y, int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) const {
    const auto& k = kernels<T>();
    const int64_t at = offset(x, n, c);
    const T* from = const_data<T>(x.tensor) + at;
    T* to = data<T>(y) + at;
    double *mu = scratch.sums.data(), *m2 = mu + width;
    const ChannelAffine<A> affine(scratch.affine.data(), width);
    const int64_t count = width / channels * parts;
    if (x.columns && parts == channels) {
      for (int64_t i = 0; i < width; i += kTileWidth)
        k.column_moments(from + i, tile(x, std::min(kTileWidth, width - i)), mu + i, m2 + i);
    } else {
      k.row_moments(from, {count, width * x.M / count}, mu, m2);
    }
    pool(n, c, width, mu, m2, affine);
    const bool past = streams<T>(x, 2);
    if (x.columns) return k.column_apply(from, to, tile(x, width, past), affine, this->act);
    from_the_end(x, width, [&](int64_t i, int64_t count) {
      k.row_apply(from + i * x.M, to + i * x.M, runs(x, count, past), affine + i, this->act);
    });
  }

  void operator()(const Tensor& y) const {
    const auto task = [&](int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) { fused(y, n, c, width, scratch); };
    if (this->run(kTaskBytes, task)) return;
    const int64_t cells = x.N * x.C;
    Scratch<A> scratch(cells);
    double *mu = scratch.sums.data(), *m2 = mu + cells;
    const ChannelAffine<A> affine(scratch.affine.data(), cells);
    const int64_t each = this->G * parts;
    if (parts == channels) {
      all_moments<T>(x, mu, m2);
    } else {
      const auto& k = kernels<T>();
      const T* from = const_data<T>(x.tensor);
      const int64_t size = channels * x.M / parts;
      parallel(x.N * each, size, [&](int64_t begin, int64_t end) {
        k.row_moments(from + begin * size, {end - begin, size}, mu + begin, m2 + begin);
      });
    }
    for (int64_t n = 0; n < x.N; ++n) {
      const int64_t i = n * x.C;
      pool(n, 0, x.C, mu + n * each, m2 + n * each, affine + i);
    }
    all_apply<T>(x, y, [&](int64_t n) { return affine + n * x.C; }, this->act);
  }
};

template <class T> struct Backward : Groups<T> {
  using typename Groups<T>::A;
  using Groups<T>::Groups, Groups<T>::x, Groups<T>::channels;
  const double *mean, *var;  // (N, G)
  double *s1, *s2;           // (N, C): sums of g' and of g' * (x - mean) / std

  struct Arrays {
    ChannelAffine<A> affine;
    A *mean, *slope, *offset;
    Arrays(A* memory, int64_t cells) : affine(memory, cells), mean(affine.rest + cells), slope(mean + cells), offset(slope + cells) {}
    Slant<A> slant() const { return {slope, offset}; }
    Arrays operator+(int64_t c) const {
      Arrays moved = *this;
      moved.affine = affine + c, moved.mean += c, moved.slope += c, moved.offset += c;
      return moved;
    }
  };

  void repeat(int64_t n, int64_t c, int64_t width, Arrays a) const {
    const int64_t group = n * this->G + c / channels;
    const Learned<A> given{this->parameters.weights(n) + c, this->parameters.biases(n) + c};
    kernels<T>().repeat_groups(this->pools(width, 1), mean + group, var + group, given, a.affine, a.mean);
  }

  void solve(int64_t n, int64_t c, int64_t width, Arrays a) const {
    const int64_t group = n * this->G + c / channels;
    const A* weight = this->parameters.weights(n) + c;
    double *one = s1 + n * x.C + c, *two = s2 + n * x.C + c;
    kernels<T>().solve_groups(this->pools(width, 1), mean + group, var + group, a.affine.center, weight, one, two, a.slope, a.offset);
  }

  void fused(const Tensor& g, const Tensor& dx, int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) const {
    const auto& k = kernels<T>();
    const int64_t at = offset(x, n, c);
    const T *gp = const_data<T>(g) + at, *xp = const_data<T>(x.tensor) + at;
    T* to = data<T>(dx) + at;
    double *one = s1 + n * x.C + c, *two = s2 + n * x.C + c;
    const Arrays a(scratch.affine.data(), width);
    const bool past = streams<T>(x, 3);
    repeat(n, c, width, a);
    if (x.columns) {
      for (int64_t i = 0; i < width; i += kTileWidth)
        k.column_grad_sums(gp + i, xp + i, tile(x, std::min(kTileWidth, width - i)), a.mean + i, a.affine + i, this->act,
                           one + i, two + i);
      solve(n, c, width, a);
      k.column_grad_input(gp, xp, to, tile(x, width, past), a.affine, a.slant(), this->act);
    } else {
      k.row_grad_sums(gp, xp, runs(x, width), a.mean, a.affine, this->act, one, two);
      solve(n, c, width, a);
      from_the_end(x, width, [&](int64_t i, int64_t count) {
        const int64_t at = i * x.M;
        k.row_grad_input(gp + at, xp + at, to + at, runs(x, count, past), a.affine + i, a.slant() + i, this->act);
      });
    }
  }

  void operator()(const Tensor& g, const Tensor& dx) const {
    const auto task = [&](int64_t n, int64_t c, int64_t width, Scratch<A>& scratch) { fused(g, dx, n, c, width, scratch); };
    if (this->run(x.M < kShortRow ? kLongTaskBytes : kTaskBytes, task)) return;
    Scratch<A> scratch(x.N * x.C);
    const Arrays a(scratch.affine.data(), x.N * x.C);
    const auto row = [&](int64_t n) { return a + n * x.C; };
    for (int64_t n = 0; n < x.N; ++n) repeat(n, 0, x.C, row(n));
    all_grad_sums<T>(g, x, [&](int64_t n) { return row(n).mean; }, [&](int64_t n) { return row(n).affine; }, this->act, s1, s2);
    for (int64_t n = 0; n < x.N; ++n) solve(n, 0, x.C, row(n));
    all_grad_input<T>(g, x, dx, [&](int64_t n) { return row(n).affine; }, [&](int64_t n) { return row(n).slant(); }, this->act);
  }
};

}  // namespace

std::tuple<Tensor, Tensor> sample_norm(const Tensor& input, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias,
                                       double eps, int64_t code, double slope) {
  const Cells x(input);
  Tensor y = x.empty_like(), moments = empty({2, x.N, groups}, ScalarType::Double);
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Forward<T> forward(x, groups, weight, bias, eps, Activation{static_cast<Act>(code), slope});
    forward.mean = data<double>(moments);
    forward.var = forward.mean + x.N * groups;
    if (forward.of_vectors()) normalize_vectors<T>(x, y, forward.vectors(), forward.parameters, forward.act, forward.mean, forward.var);
    else forward(y);
  });
  return {y, moments};
}

std::tuple<Tensor, Tensor, Tensor> sample_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& moments,
                                                        int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias,
                                                        double eps, int64_t code, double slope) {
  const Cells x(input);
  const Tensor g = x.match(grad);
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Backward<T> backward(x, groups, weight, bias, eps, Activation{static_cast<Act>(code), slope});
    backward.mean = saved_moments(moments, x.N * groups);
    backward.var = backward.mean + x.N * groups;
    if (backward.of_vectors())
      return vector_gradients<T>(g, x, backward.vectors(), backward.parameters, weight, bias, backward.act, backward.mean, backward.var);
    Tensor dx = x.empty_like();
    const Buffer<double> sums(2 * x.N * x.C);
    backward.s1 = sums.data();
    backward.s2 = backward.s1 + x.N * x.C;
    backward(g, dx);
    using A = acc_t<T>;
    return std::tuple<Tensor, Tensor, Tensor>{dx, parameter_gradient<A>(x, weight, backward.s2),
                                              parameter_gradient<A>(x, bias, backward.s1)};
  });
}

}  // namespace normwise
