// The light part of a mix, on (N, C) values in float64: pools, shares, and the vjp of both.
#pragma once

#include "light.h"
#include "tensors.h"

namespace normwise {

// What an element of the cells' moments costs, in elements of x.
constexpr int64_t kLightWork = 4;

// to[c] = sum over rows of from[r][c].
template <class A> void add_rows(const A* from, int64_t rows, int64_t C, double* to) {
  parallel(C, kLightWork * rows, [=](int64_t begin, int64_t end) {
    std::fill(to + begin, to + end, 0.0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = begin; c < end; ++c) to[c] += from[r * C + c];
  });
}

// Merges rows of cells of equal size by the law of total variance: their means, and sums of squared deviations. Taken about
// the first row, so that equal means pool to exactly themselves.
void pool_rows(const double* mean, const double* m2, int64_t rows, int64_t C, double size, double* to_mean, double* to_m2);

// A member of a mix: its moments, one a pool, and in the backward pass the gradients of what they contribute.
struct Member {
  int64_t groups;  // within a sample; 0 for the pool over samples
  int64_t cells;   // in a pool; 0 where the moments were given and no cell has a part in them
  double mean_share, var_share;
  std::vector<double> own;  // where the moments are not the cells' own: means, then variances
  const double *mean, *var;
  std::vector<double> own_grad;  // likewise
  const double *grad_mean, *grad_var;  // of share * mean and share * variance
};

// K shares that sum to 1: equal ones, those given, or the softmax of those given.
std::vector<double> shares(const std::optional<Tensor>& weights, bool logits, size_t members);

// The gradient of what `shares` was given, from that of the shares.
void shares_vjp(const std::vector<double>& shares, bool logits, std::vector<double>& grad);

struct Members {
  int64_t N, C;
  std::vector<Member> list;

  // mean, var: of the cells, (N, C). population: of the pool over samples where it is not this batch's, (C,).
  Members(const Cells& x, const std::vector<int64_t>& groups, const double* mean, const double* var,
          const double* population_mean, const double* population_var, const std::vector<double>& mean_shares,
          const std::vector<double>& var_shares);

  // Whether all samples are normalized alike.
  bool uniform() const;
  const Member* over_samples() const;

  // The mixed moments of sample n's channels.
  void mix(int64_t n, double* mean, double* var) const;

  // Gives the members their part in the gradients of the mixed moments, (N, C).
  void take_gradients(const double* grad_mean, const double* grad_var);

  // Then: the gradients of sample n's cells' moments, given their means ...
  void cell_gradients(int64_t n, const double* mean, double* grad_mean, double* grad_var) const;
  // ... and of the shares.
  std::vector<double> share_gradients(bool of_means) const;

 private:
  int64_t pools(const Member& m) const { return m.groups == 0 ? C : N * m.groups; }
  void pool_samples(Member& m, const double* mean, const double* var) const;
  void pool_groups(Member& m, const double* mean, const double* var) const;
  void sum_pools(const Member& m, const double* cells, double* pools) const;

  // Calls f(step, first channel, channels, first pool) for the pools of sample n: `step` pools on from channel to channel,
  // as a compile-time constant 0 or 1.
  template <class F> void for_pools(const Member& m, int64_t n, F f) const {
    constexpr std::integral_constant<int64_t, 0> same{};
    constexpr std::integral_constant<int64_t, 1> next{};
    if (m.groups == 0) return f(next, int64_t{0}, C, int64_t{0});
    if (m.groups == C) return f(next, int64_t{0}, C, n * C);
    const int64_t width = C / m.groups;
    for (int64_t g = 0; g < m.groups; ++g) f(same, g * width, width, n * m.groups + g);
  }
};

}  // namespace normwise
