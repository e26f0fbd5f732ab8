// The kernels of any processor against plain loops in float64, without torch: `make portable` builds this for another
// architecture and runs it in an emulator.
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <vector>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "convert.h"
#include "kernels.h"

using namespace normwise;

namespace {

int checks = 0, failures = 0;

template <class T> constexpr double tolerance = sizeof(T) == 8 ? 1e-12 : sizeof(T) == 4 ? 4e-6 : std::is_same_v<T, Half> ? 2e-3 : 1.6e-2;

// Whether `got` is `wanted` but for rounding, relative to the largest of `wanted`.
template <class T, class V> void expect(const char* what, const std::vector<V>& got, const std::vector<double>& wanted, double slack) {
  double size = 1, error = 0;
  for (double w : wanted) size = std::max(size, std::abs(w));
  for (size_t i = 0; i < wanted.size(); ++i) error = std::max(error, std::abs(static_cast<double>(load(got[i])) - wanted[i]));
  ++checks;
  if (error <= slack * tolerance<T> * size) return;
  ++failures;
  std::printf("%s of %zu bytes an element: off by %g of %g\n", what, sizeof(T), error, size);
}

double act(Act kind, double z) {
  if (kind == Act::relu) return z < 0 ? 0 : z;
  if (kind == Act::leaky_relu) return z > 0 ? z : 0.2 * z;
  return kind == Act::silu ? z / (1 + std::exp(-z)) : z;
}
double slope(Act kind, double z) {
  if (kind == Act::relu) return z > 0;
  if (kind == Act::leaky_relu) return z > 0 ? 1 : 0.2;
  const double s = 1 / (1 + std::exp(-z));
  return kind == Act::silu ? s * (1 + z * (1 - s)) : 1;
}

template <class T> struct Problem {
  using A = acc_t<T>;
  int64_t cells, n;  // n elements a cell
  std::vector<T> x, g, y;
  std::vector<A> mean, scale, shift, slopes, offsets;
  std::mt19937 random;

  Problem(int64_t cells, int64_t n) : cells(cells), n(n), x(cells * n), g(cells * n), y(cells * n), random(static_cast<unsigned>(cells + n)) {
    for (T& v : x) store(&v, static_cast<A>(0.5 + 2 * draw()));
    for (T& v : g) store(&v, static_cast<A>(draw()));
    for (auto* of : {&mean, &scale, &shift, &slopes, &offsets})
      for (int64_t i = 0; i < cells; ++i) of->push_back(static_cast<A>(draw()));
  }
  double draw() { return std::normal_distribution<double>()(random); }
};

// The four kernels in one of the layouts; element j of cell i is at(i, j).
template <class T> void check_cells(bool columns, int64_t cells, int64_t n, Act kind) {
  using A = acc_t<T>;
  Problem<T> p(cells, n);
  const auto& k = kernels<T>();
  const auto at = [=](int64_t i, int64_t j) { return columns ? j * cells + i : i * n + j; };
  const Runs runs{cells, n};
  const Tile tile{n, cells, cells};
  const Affine<A> affine{p.mean.data(), p.scale.data(), p.shift.data(), nullptr};
  const Slant<A> slant{p.slopes.data(), p.offsets.data()};
  const Activation activation{kind, 0.2};
  std::vector<double> mean(cells), m2(cells), s1(cells), s2(cells), right_mean(cells), right_m2(cells), right_s1(cells), right_s2(cells);
  std::vector<double> right_y(cells * n), right_dx(cells * n);
  std::vector<T> dx(cells * n);
  for (int64_t i = 0; i < cells; ++i) {
    for (int64_t j = 0; j < n; ++j) right_mean[i] += load(p.x[at(i, j)]) / static_cast<double>(n);
    for (int64_t j = 0; j < n; ++j) {
      const double v = load(p.x[at(i, j)]), z = (v - p.mean[i]) * double(p.scale[i]) + p.shift[i], d = load(p.g[at(i, j)]) * slope(kind, z);
      right_m2[i] += (v - right_mean[i]) * (v - right_mean[i]);
      right_y[at(i, j)] = act(kind, z);
      right_s1[i] += d, right_s2[i] += d * (v - p.mean[i]);
      right_dx[at(i, j)] = p.scale[i] * d + p.slopes[i] * (v - p.mean[i]) + p.offsets[i];
    }
  }
  (columns ? k.column_moments(p.x.data(), tile, mean.data(), m2.data()) : k.row_moments(p.x.data(), runs, mean.data(), m2.data()));
  (columns ? k.column_apply(p.x.data(), p.y.data(), tile, affine, activation) : k.row_apply(p.x.data(), p.y.data(), runs, affine, activation));
  if (columns) {
    k.column_grad_sums(p.g.data(), p.x.data(), tile, p.mean.data(), affine, activation, s1.data(), s2.data());
    k.column_grad_input(p.g.data(), p.x.data(), dx.data(), tile, affine, slant, activation);
  } else {
    k.row_grad_sums(p.g.data(), p.x.data(), runs, p.mean.data(), affine, activation, s1.data(), s2.data());
    k.row_grad_input(p.g.data(), p.x.data(), dx.data(), runs, affine, slant, activation);
  }
  // Statistics are held in the type that is computed in.
  expect<A>("mean", mean, right_mean, 1), expect<A>("squares", m2, right_m2, 1);
  expect<A>("sum of gradients", s1, right_s1, 4), expect<A>("dot of gradients", s2, right_s2, 4);
  expect<T>("output", p.y, right_y, 1), expect<T>("gradient of the input", dx, right_dx, 2);
}

template <class T> void check_vectors(int64_t samples, int64_t groups, int64_t n, bool centered, Act kind) {
  using A = acc_t<T>;
  const int64_t width = groups * n, all = samples * groups;
  Problem<T> p(all, n);
  const auto& k = kernels<T>();
  std::vector<A> weight, bias, of_weight(width), of_bias(width);
  for (int64_t i = 0; i < width; ++i) weight.push_back(static_cast<A>(p.draw())), bias.push_back(static_cast<A>(p.draw()));
  std::vector<double> mean(all), var(all), right_y(all * n), right_dx(all * n), right_weight(width), right_bias(width);
  std::vector<T> dx(all * n);
  for (int64_t i = 0; i < all; ++i) {
    const T *x = p.x.data() + i * n, *g = p.g.data() + i * n;
    const int64_t c = i % groups * n;
    double mu = 0, square = 0, total = 0, dot = 0;
    for (int64_t j = 0; j < n && centered; ++j) mu += load(x[j]) / static_cast<double>(n);
    for (int64_t j = 0; j < n; ++j) square += (load(x[j]) - mu) * (load(x[j]) - mu) / static_cast<double>(n);
    const double rstd = 1 / std::sqrt(square + 1e-5);
    std::vector<double> v(n), d(n);
    for (int64_t j = 0; j < n; ++j) {
      v[j] = (load(x[j]) - mu) * rstd;
      const double z = v[j] * weight[c + j] + bias[c + j];
      right_y[i * n + j] = act(kind, z);
      d[j] = load(g[j]) * slope(kind, z);
      right_weight[c + j] += d[j] * v[j], right_bias[c + j] += d[j];
      total += d[j] * weight[c + j], dot += d[j] * weight[c + j] * v[j];
    }
    for (int64_t j = 0; j < n; ++j)
      right_dx[i * n + j] = rstd * (d[j] * weight[c + j] - (centered ? total / n : 0) - v[j] * dot / n);
  }
  const Vectors of{samples, groups, n, 1e-5, centered};
  const Learned<A> given{weight.data(), bias.data()};
  const Activation activation{kind, 0.2};
  k.vector_norm(p.x.data(), p.y.data(), of, given, activation, mean.data(), var.data());
  k.vector_norm_grad(p.g.data(), p.x.data(), dx.data(), of, given, activation, mean.data(), var.data(), of_weight.data(), of_bias.data());
  expect<T>("output of vectors", p.y, right_y, 1), expect<T>("gradient of vectors", dx, right_dx, 4);
  expect<A>("gradient of weights", of_weight, right_weight, 4), expect<A>("gradient of biases", of_bias, right_bias, 4);
}

template <class T> void check() {
  for (Act kind : {Act::none, Act::relu, Act::leaky_relu, Act::silu})
    for (int64_t n : {1, 3, 4, 7, 16, 49, 196, 1025, 2100}) {
      for (int64_t cells : {1, 3, 9, 40})
        for (bool columns : {false, true}) check_cells<T>(columns, cells, n, kind);
      for (bool centered : {false, true})
        if (n > 1) check_vectors<T>(6, 2, n, centered, kind);
    }
}

}  // namespace

int main() {
  check<float>(), check<double>(), check<BFloat16>(), check<Half>();
  std::printf("%d checks, %d failed\n", checks, failures);
  return failures > 0;
}
