#include "mix.h"

#include <cmath>

#include "cells.h"
#include "members.h"

namespace normwise {
namespace {

// Whether the input's own moments are needed: not where the one pool's are given.
bool reads_cells(const std::vector<int64_t>& groups, const MaybeTensor& population) {
  return !(population && groups.size() == 1 && groups[0] == 0);
}

// Where all samples are normalized alike, they may as well be one.
void join_samples(Cells& x, const std::vector<int64_t>& groups, const MaybeTensor& weight, const MaybeTensor& bias) {
  const bool shared = (!weight || weight->dim() == 1) && (!bias || bias->dim() == 1);
  if (groups.size() == 1 && groups[0] == 0 && shared) x.join_samples();
}

// The affine of every cell; rows of C values, one for all samples where they are normalized alike.
template <class A> struct Rows {
  int64_t C, count, stride;
  Buffer<A> memory;
  ChannelAffine<A> all;

  Rows(const Cells& x, bool uniform)
      : C(x.C), count(uniform ? std::min<int64_t>(1, x.N) : x.N), stride(uniform ? 0 : x.C),
        memory(ChannelAffine<A>::kArrays * count * x.C), all(memory.data(), count * x.C) {}
  ChannelAffine<A> of(int64_t n) const { return all + n * stride; }
};

// What normalizes sample n by its channels' mixed moments.
template <class T, class A>
void fill_row(const Rows<A>& rows, const Parameters<A>& p, int64_t n, const double* mean, const double* var, double eps) {
  kernels<T>().channel_affine(rows.C, mean, var, eps, {p.weights(n), p.biases(n)}, rows.of(n));
}

void count(const MaybeTensor& counter) {
  if (!counter) return;
  STD_TORCH_CHECK(counter->scalar_type() == ScalarType::Long && counter->numel() == 1, "normwise: batches are counted in one int64");
  ++*data<int64_t>(*counter);
}

// running <- (1 - momentum) * running + momentum * batch, unless the batch is not finite and `skipped` counts such ones.
template <class A>
void update_running(const Cells& x, const Member& batch, const Tensor& running_mean, const Tensor& running_var,
                    const MaybeTensor& skipped, const MaybeTensor& tracked, double momentum) {
  if (skipped && !std::all_of(batch.var, batch.var + x.C, [](double v) { return std::isfinite(static_cast<A>(v)); }))
    return count(skipped);
  count(tracked);
  const double count = static_cast<double>(x.N * x.M), unbiased = count / std::max(1.0, count - 1);
  A *mean = data<A>(running_mean), *var = data<A>(running_var);
  for (int64_t c = 0; c < x.C; ++c) {
    mean[c] = static_cast<A>(mean[c] + momentum * (batch.mean[c] - mean[c]));
    var[c] = static_cast<A>(var[c] + momentum * (batch.var[c] * unbiased - var[c]));
  }
}

void check_running(const Cells& x, const MaybeTensor& running) {
  check_channels(x, running);
  STD_TORCH_CHECK(!running || (running->is_contiguous() && running->scalar_type() == acc_type(x.tensor.scalar_type())),
                  "normwise: expected running averages of the type that the input is summed in");
}

// Of what has one value a channel.
std::vector<double> maybe_values(const Cells& x, const MaybeTensor& t) {
  check_channels(x, t);
  return t ? values(*t) : std::vector<double>();
}
const double* maybe_data(const std::vector<double>& v) { return v.empty() ? nullptr : v.data(); }

Tensor as_tensor(const std::vector<double>& from, ScalarType dtype) {
  Tensor result = empty({static_cast<int64_t>(from.size())}, dtype);
  if (dtype == ScalarType::Double) std::copy(from.begin(), from.end(), data<double>(result));
  else std::copy(from.begin(), from.end(), data<float>(result));
  return result;
}

struct MixGradients {
  Tensor x, weight, bias;
  std::vector<double> mean_weight, var_weight;
};

MixGradients gradients(const Tensor& grad, const Tensor& input, const Tensor& moments, const MaybeTensor& weight,
                       const MaybeTensor& bias, const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits,
                       const std::vector<int64_t>& groups, double eps, const MaybeTensor& population_mean,
                       const MaybeTensor& population_var, int64_t code, double slope) {
  Cells x(input);
  const Tensor g = x.match(grad);
  join_samples(x, groups, weight, bias);
  const bool reads = reads_cells(groups, population_mean);
  const Activation act{static_cast<Act>(code), slope};
  const int64_t known = reads ? x.N * x.C : 0;
  const double *mean = saved_moments(moments, known), *var = mean + known;
  Tensor dx = x.empty_like();
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const int64_t C = x.C, cells = x.N * C;
    const auto given_mean = maybe_values(x, population_mean), given_var = maybe_values(x, population_var);
    const auto mean_shares = shares(mean_weight, logits, groups.size()), var_shares = shares(var_weight, logits, groups.size());
    Members members(x, groups, mean, var, maybe_data(given_mean), maybe_data(given_var), mean_shares, var_shares);
    const Parameters<A> parameters(x, weight, bias);
    const Rows<A> rows(x, members.uniform() && !parameters.per_sample());
    // Sums about the cells' means, rounded, lose the least; where these are not known, about the centre.
    const Buffer<A> means(reads ? cells : 0);
    if (reads) std::copy_n(mean, cells, means.data());
    const A* about = reads ? means.data() : rows.all.center;
    const int64_t about_stride = reads ? C : rows.stride;
    const Buffer<double> center(cells), rstd(cells);
    parallel(x.N, kLightWork * C, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        double *c = center.data() + n * C, *r = rstd.data() + n * C;
        members.mix(n, c, r);
        if (n < rows.count) fill_row<T>(rows, parameters, n, c, r, eps);
        for (int64_t i = 0; i < C; ++i) r[i] = 1 / std::sqrt(r[i] + eps);
      }
    });
    const Buffer<double> sums(2 * cells), grads(2 * cells);
    double *s1 = sums.data(), *s2 = s1 + cells, *grad_mean = grads.data(), *grad_var = grad_mean + cells;
    all_grad_sums<T>(
        g, x, [&](int64_t n) { return about + n * about_stride; }, [&](int64_t n) { return rows.of(n); }, act, s1, s2);
    parallel(x.N, kLightWork * C, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const A *weight = parameters.weights(n), *mu = about + n * about_stride;
        const double *c = center.data() + n * C, *r = rstd.data() + n * C, *one = s1 + n * C;
        double *two = s2 + n * C, *to_mean = grad_mean + n * C, *to_var = grad_var + n * C;
        for (int64_t i = 0; i < C; ++i) {
          const double grad_scale = two[i] + (mu[i] - c[i]) * one[i];
          two[i] = r[i] * grad_scale;  // the weight's gradient from here on
          to_mean[i] = -weight[i] * r[i] * one[i];
          to_var[i] = -0.5 * weight[i] * r[i] * r[i] * two[i];
        }
      }
    });
    members.take_gradients(grad_mean, grad_var);
    const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, x.M));
    const Buffer<A> slopes(cells), offsets(cells);
    parallel(x.N, kLightWork * C, [&](int64_t begin, int64_t end) {
      const Buffer<double> of_mean(C), of_var(C);
      for (int64_t n = begin; n < end; ++n) {
        const double* mu = mean + (reads ? n * C : 0);
        const A* center = rows.of(n).center;
        members.cell_gradients(n, mu, of_mean.data(), of_var.data());
        for (int64_t i = 0; i < C; ++i) {
          const double tilt = 2 * of_var[i] * share, way = reads ? center[i] - mu[i] : 0;
          slopes[n * C + i] = static_cast<A>(tilt);
          offsets[n * C + i] = static_cast<A>(of_mean[i] * share + tilt * way);
        }
      }
    });
    all_grad_input<T>(
        g, x, dx, [&](int64_t n) { return rows.of(n); },
        [&](int64_t n) { return Slant<A>{slopes.data() + n * C, offsets.data() + n * C}; }, act);
    auto grad_means = members.share_gradients(true), grad_vars = members.share_gradients(false);
    shares_vjp(mean_shares, logits, grad_means);
    shares_vjp(var_shares, logits, grad_vars);
    return MixGradients{dx, parameter_gradient(x, parameters.weight, s2), parameter_gradient(x, parameters.bias, s1),
                        std::move(grad_means), std::move(grad_vars)};
  });
}

}  // namespace

std::tuple<Tensor, Tensor> mix_norm(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                    const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits,
                                    std::vector<int64_t> groups, double eps, const MaybeTensor& population_mean,
                                    const MaybeTensor& population_var, const MaybeTensor& running_mean,
                                    const MaybeTensor& running_var, const MaybeTensor& skipped, const MaybeTensor& tracked,
                                    double momentum, int64_t code, double slope) {
  Cells x(input);
  check_running(x, running_mean);
  check_running(x, running_var);
  join_samples(x, groups, weight, bias);
  const bool reads = reads_cells(groups, population_mean);
  const Activation act{static_cast<Act>(code), slope};
  const int64_t cells = reads ? x.N * x.C : 0;
  Tensor y = x.empty_like(), moments = empty(reads ? std::vector<int64_t>{2, x.N, x.C} : std::vector<int64_t>{0}, ScalarType::Double);
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    double *mean = data<double>(moments), *var = mean + cells;
    if (reads) {
      all_moments<T>(x, mean, var);
      const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, x.M));
      for (int64_t i = 0; i < cells; ++i) var[i] *= share;
    }
    const auto given_mean = maybe_values(x, population_mean), given_var = maybe_values(x, population_var);
    const Members members(x, groups, mean, var, maybe_data(given_mean), maybe_data(given_var),
                          shares(mean_weight, logits, groups.size()), shares(var_weight, logits, groups.size()));
    const Parameters<A> parameters(x, weight, bias);
    const Rows<A> rows(x, members.uniform() && !parameters.per_sample());
    parallel(rows.count, kLightWork * x.C, [&](int64_t begin, int64_t end) {
      const Buffer<double> mixed(2 * x.C);
      for (int64_t n = begin; n < end; ++n) {
        members.mix(n, mixed.data(), mixed.data() + x.C);
        fill_row<T>(rows, parameters, n, mixed.data(), mixed.data() + x.C, eps);
      }
    });
    all_apply<T>(x, y, [&](int64_t n) { return rows.of(n); }, act);
    if (running_mean && running_var && members.over_samples())
      update_running<A>(x, *members.over_samples(), *running_mean, *running_var, skipped, tracked, momentum);
    return std::tuple<Tensor, Tensor>{y, moments};
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_norm_backward(
    const Tensor& grad, const Tensor& input, const Tensor& moments, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits, std::vector<int64_t> groups, double eps,
    const MaybeTensor& population_mean, const MaybeTensor& population_var, int64_t code, double slope) {
  const MixGradients of = gradients(grad, input, moments, weight, bias, mean_weight, var_weight, logits, groups, eps,
                                    population_mean, population_var, code, slope);
  const ScalarType dtype = acc_type(input.scalar_type());
  return {of.x, of.weight, of.bias, as_tensor(of.mean_weight, dtype), as_tensor(of.var_weight, dtype)};
}

std::tuple<Tensor, Tensor> batch_norm(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                      const MaybeTensor& skipped, const MaybeTensor& tracked, double momentum, int64_t code,
                                      double slope) {
  return mix_norm(input, weight, bias, {}, {}, false, {0}, eps, {}, {}, running_mean, running_var, skipped, tracked, momentum,
                  code, slope);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& moments,
                                                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                       int64_t code, double slope) {
  const MixGradients of = gradients(grad, input, moments, weight, bias, {}, {}, false, {0}, eps, {}, {}, code, slope);
  return {of.x, of.weight, of.bias};
}

}  // namespace normwise
