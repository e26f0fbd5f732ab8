#include "members.h"

#include <cmath>
#include <numeric>

namespace normwise {

void pool_rows(const double* mean, const double* m2, int64_t rows, int64_t C, double size, double* to_mean, double* to_m2) {
  parallel(C, kLightWork * rows, [=](int64_t begin, int64_t end) {
    std::fill(to_mean + begin, to_mean + end, 0.0);
    for (int64_t r = 1; r < rows; ++r)
      for (int64_t c = begin; c < end; ++c) to_mean[c] += mean[r * C + c] - mean[c];
    for (int64_t c = begin; c < end; ++c) to_mean[c] = mean[c] + to_mean[c] / static_cast<double>(rows);
    std::fill(to_m2 + begin, to_m2 + end, 0.0);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = begin; c < end; ++c) {
        const double d = mean[r * C + c] - to_mean[c];
        to_m2[c] += m2[r * C + c] + size * d * d;
      }
  });
}

std::vector<double> shares(const std::optional<Tensor>& weights, bool logits, size_t members) {
  if (!weights) return std::vector<double>(members, 1.0 / static_cast<double>(members));
  std::vector<double> result = values(*weights);
  STD_TORCH_CHECK(result.size() == members, "normwise: expected ", members, " weights of a mix, got ", result.size());
  if (!logits) return result;
  const double largest = *std::max_element(result.begin(), result.end());
  double total = 0;
  for (double& value : result) total += value = std::exp(value - largest);
  for (double& value : result) value /= total;
  return result;
}

void shares_vjp(const std::vector<double>& shares, bool logits, std::vector<double>& grad) {
  if (!logits) return;
  const double mean = std::inner_product(shares.begin(), shares.end(), grad.begin(), 0.0);
  for (size_t k = 0; k < grad.size(); ++k) grad[k] = shares[k] * (grad[k] - mean);
}

Members::Members(const Cells& x, const std::vector<int64_t>& groups, const double* mean, const double* var,
                 const double* population_mean, const double* population_var, const std::vector<double>& mean_shares,
                 const std::vector<double>& var_shares)
    : N(x.N), C(x.C) {
  for (size_t k = 0; k < groups.size(); ++k) {
    const int64_t G = groups[k];
    STD_TORCH_CHECK(G >= 0 && (G == 0 || C % G == 0), "normwise: ", C, " channels cannot be divided into ", G, " groups");
    Member m{G, G == 0 ? N : C / G, mean_shares[k], var_shares[k], {}, mean, var, {}, nullptr, nullptr};
    if (G == 0 && population_mean) {
      m.mean = population_mean, m.var = population_var, m.cells = 0;
    } else if (m.cells != 1) {
      m.own.resize(2 * pools(m));
      m.mean = m.own.data(), m.var = m.mean + pools(m);
      if (G == 0) pool_samples(m, mean, var);
      else pool_groups(m, mean, var);
    }
    list.push_back(std::move(m));
  }
}

void Members::pool_samples(Member& m, const double* mean, const double* var) const {
  double *pooled = m.own.data(), *spread = pooled + C;
  if (N == 0) return;
  pool_rows(mean, var, N, C, 1, pooled, spread);
  for (int64_t c = 0; c < C; ++c) spread[c] /= static_cast<double>(N);
}

// About the first cell, as pool_rows.
void Members::pool_groups(Member& m, const double* mean, const double* var) const {
  const int64_t width = m.cells, count = pools(m);
  const double share = 1.0 / static_cast<double>(width);
  double* own = m.own.data();
  parallel(count, kLightWork * width, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const double *mu = mean + p * width, *v = var + p * width;
      const double pooled = mu[0] + share * total(width, [=](int64_t i) { return mu[i] - mu[0]; });
      own[p] = pooled;
      own[count + p] = share * total(width, [=](int64_t i) { return v[i] + (mu[i] - pooled) * (mu[i] - pooled); });
    }
  });
}

bool Members::uniform() const { return list.size() == 1 && list[0].groups == 0; }

const Member* Members::over_samples() const {
  for (const Member& m : list)
    if (m.groups == 0) return &m;
  return nullptr;
}

void Members::mix(int64_t n, double* mean, double* var) const {
  std::fill_n(mean, C, 0.0);
  std::fill_n(var, C, 0.0);
  for (const Member& m : list)
    for_pools(m, n, [&](auto step, int64_t first, int64_t count, int64_t pool) {
      const double *from_mean = m.mean + pool, *from_var = m.var + pool, a = m.mean_share, b = m.var_share;
      double *to_mean = mean + first, *to_var = var + first;
      // A member without a share has none in what overflowed either.
      for (int64_t i = 0; i < count && a != 0; ++i) to_mean[i] += a * from_mean[step * i];
      for (int64_t i = 0; i < count && b != 0; ++i) to_var[i] += b * from_var[step * i];
    });
}

void Members::sum_pools(const Member& m, const double* cells, double* sums) const {
  if (m.groups == 0) return add_rows(cells, N, C, sums);
  const int64_t width = C / m.groups;
  parallel(pools(m), kLightWork * width, [=](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) sums[p] = total(width, [=](int64_t i) { return cells[p * width + i]; });
  });
}

void Members::take_gradients(const double* grad_mean, const double* grad_var) {
  for (Member& m : list) {
    m.grad_mean = grad_mean, m.grad_var = grad_var;
    if (m.cells == 1) continue;
    m.own_grad.resize(2 * pools(m));
    double *to_mean = m.own_grad.data(), *to_var = to_mean + pools(m);
    sum_pools(m, grad_mean, to_mean);
    sum_pools(m, grad_var, to_var);
    m.grad_mean = to_mean, m.grad_var = to_var;
  }
}

// With P cells a pool, d(pooled mean)/dμ = 1/P, d(pooled var)/dσ² = 1/P and d(pooled var)/dμ = 2(μ − pooled mean)/P.
void Members::cell_gradients(int64_t n, const double* mean, double* grad_mean, double* grad_var) const {
  std::fill_n(grad_mean, C, 0.0);
  std::fill_n(grad_var, C, 0.0);
  for (const Member& m : list) {
    if (m.cells == 0) continue;
    for_pools(m, n, [&](auto step, int64_t first, int64_t count, int64_t pool) {
      const double *of_mean = m.grad_mean + pool, *of_var = m.grad_var + pool, *pooled = m.mean + pool;
      const double a = m.mean_share / static_cast<double>(m.cells), b = m.var_share / static_cast<double>(m.cells);
      for (int64_t i = 0; i < count; ++i) {
        const double v = b * of_var[step * i];
        grad_var[first + i] += v;
        grad_mean[first + i] += a * of_mean[step * i] + 2 * v * (mean[first + i] - pooled[step * i]);
      }
    });
  }
}

std::vector<double> Members::share_gradients(bool of_means) const {
  std::vector<double> result;
  for (const Member& m : list) {
    const double *moment = of_means ? m.mean : m.var, *grad = of_means ? m.grad_mean : m.grad_var;
    // Of a variance that overflowed the gradient is 0.
    result.push_back(total(pools(m), [=](int64_t i) { return grad[i] == 0 ? 0 : moment[i] * grad[i]; }));
  }
  return result;
}

}  // namespace normwise
