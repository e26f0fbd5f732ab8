#include "members.h"

#include <numeric>

namespace normwise {

void add_rows(const double* from, int64_t rows, int64_t C, double* to) {
  std::fill_n(to, C, 0.0);
  for (int64_t r = 0; r < rows; ++r, from += C)
    for (int64_t c = 0; c < C; ++c) to[c] += from[c];
}

void pool_rows(const double* mean, const double* m2, int64_t rows, int64_t C, double size, double* to_mean, double* to_m2) {
  std::fill_n(to_mean, C, 0.0);
  for (int64_t r = 1; r < rows; ++r)
    for (int64_t c = 0; c < C; ++c) to_mean[c] += mean[r * C + c] - mean[c];
  for (int64_t c = 0; c < C; ++c) to_mean[c] = mean[c] + to_mean[c] / static_cast<double>(rows);
  std::fill_n(to_m2, C, 0.0);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < C; ++c) {
      const double d = mean[r * C + c] - to_mean[c];
      to_m2[c] += m2[r * C + c] + size * d * d;
    }
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
    Member m{G, G == 0 ? N : C / G, mean_shares[k], var_shares[k], {}, mean, var, {}};
    if (G == 0 && population_mean) {
      m.mean = population_mean, m.var = population_var, m.cells = 0;
    } else if (G != C) {
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
  const int64_t width = m.cells, total = pools(m);
  const double share = 1.0 / static_cast<double>(width);
  for (int64_t p = 0; p < total; ++p, mean += width, var += width) {
    double sum = 0, square = 0;
    for (int64_t i = 0; i < width; ++i) sum += mean[i] - mean[0];
    const double pooled = mean[0] + sum * share;
    for (int64_t i = 0; i < width; ++i) square += var[i] + (mean[i] - pooled) * (mean[i] - pooled);
    m.own[p] = pooled;
    m.own[total + p] = square * share;
  }
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
      for (int64_t i = 0; i < count; ++i) to_mean[i] += a * from_mean[step * i];
      for (int64_t i = 0; i < count; ++i) to_var[i] += b * from_var[step * i];
    });
}

void Members::add_gradients(int64_t n, const double* grad_mean, const double* grad_var) {
  for (Member& m : list) {
    if (m.grad.empty()) m.grad.resize(2 * pools(m));
    for_pools(m, n, [&](auto step, int64_t first, int64_t count, int64_t pool) {
      double *to_mean = m.grad.data() + pool, *to_var = to_mean + pools(m);
      for (int64_t i = 0; i < count; ++i) to_mean[step * i] += grad_mean[first + i];
      for (int64_t i = 0; i < count; ++i) to_var[step * i] += grad_var[first + i];
    });
  }
}

// With P cells a pool, d(pooled mean)/dμ = 1/P, d(pooled var)/dσ² = 1/P and d(pooled var)/dμ = 2(μ − pooled mean)/P.
void Members::cell_gradients(int64_t n, const double* mean, double* grad_mean, double* grad_var) const {
  std::fill_n(grad_mean, C, 0.0);
  std::fill_n(grad_var, C, 0.0);
  for (const Member& m : list) {
    if (m.cells == 0) continue;
    for_pools(m, n, [&](auto step, int64_t first, int64_t count, int64_t pool) {
      const double *of_mean = m.grad.data() + pool, *of_var = of_mean + pools(m), *pooled = m.mean + pool;
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
    const double *moment = of_means ? m.mean : m.var, *grad = m.grad.data() + (of_means ? 0 : pools(m));
    result.push_back(m.grad.empty() ? 0.0 : std::inner_product(moment, moment + pools(m), grad, 0.0));
  }
  return result;
}

}  // namespace normwise
