#include "mix.h"

#include <cmath>

#include "cells.h"
#include "convert.h"
#include "members.h"

namespace normwise {
namespace {

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

// running <- (1 - momentum) * running + momentum * batch, unless `skipped` counts batches that are not finite or take an average
// beyond what its type holds, and this is one.
template <class A>
void update_running(const Cells& x, const Member& batch, const Tensor& running_mean, const Tensor& running_var,
                    const MaybeTensor& skipped, const MaybeTensor& tracked, double momentum) {
  const double elements = static_cast<double>(x.N * x.M), unbiased = elements / std::max(1.0, elements - 1);
  with_dtype(running_mean.scalar_type(), [&](auto* type) {
    using R = std::remove_pointer_t<decltype(type)>;
    R *mean = data<R>(running_mean), *var = data<R>(running_var);
    const Buffer<R> moved(2 * x.C);
    bool finite = true;
    const auto move = [&](R* to, double from, double batch) {
      store(to, static_cast<acc_t<R>>(from + momentum * (batch - from)));
      finite &= std::isfinite(load(*to));
    };
    for (int64_t c = 0; c < x.C; ++c) {
      finite &= std::isfinite(static_cast<A>(batch.var[c]));
      move(&moved[c], load(mean[c]), batch.mean[c]);
      move(&moved[x.C + c], load(var[c]), batch.var[c] * unbiased);
    }
    if (skipped && !finite) return count(skipped);
    count(tracked);
    std::copy_n(moved.data(), x.C, mean);
    std::copy_n(moved.data() + x.C, x.C, var);
  });
}

void check_running(const Cells& x, const MaybeTensor& mean, const MaybeTensor& var) {
  for (const MaybeTensor* running : {&mean, &var}) {
    check_channels(x, *running);
    STD_TORCH_CHECK(!*running || ((*running)->is_contiguous() && goes_with(x, (*running)->scalar_type())),
                    "normwise: expected running averages of the input's type, or of the type that the input is summed in, contiguous");
  }
  STD_TORCH_CHECK(!mean || !var || mean->scalar_type() == var->scalar_type(), "normwise: expected running averages of one type");
}

// Of what has one value a channel.
std::vector<double> maybe_values(const Cells& x, const MaybeTensor& t) {
  check_channels(x, t);
  return t ? values(*t) : std::vector<double>();
}
const double* maybe_data(const std::vector<double>& v) { return v.empty() ? nullptr : v.data(); }

// The gradient of a mix's weights.
Tensor share_gradient(const MaybeTensor& weights, const std::vector<double>& values, ScalarType dtype) {
  return rounded({static_cast<int64_t>(values.size())}, weights ? weights->scalar_type() : dtype, values.data());
}

// `reads` is whether moments of x are needed, which are those of the cells; where the one pool's are given, they are these.
std::tuple<Tensor, Tensor> normalized(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                      const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits,
                                      const std::vector<int64_t>& groups, double eps, bool reads,
                                      const MaybeTensor& population_mean, const MaybeTensor& population_var,
                                      const MaybeTensor& running_mean, const MaybeTensor& running_var, const MaybeTensor& skipped,
                                      const MaybeTensor& tracked, double momentum, const Activation& act) {
  Cells x(input);
  check_running(x, running_mean, running_var);
  join_samples(x, groups, weight, bias);
  const int64_t samples = reads ? x.N : 1, count = samples * x.C;
  Tensor y = x.empty_like(), moments = empty({2, samples, x.C}, ScalarType::Double);
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    double *mean = data<double>(moments), *var = mean + count;
    const auto given_mean = maybe_values(x, population_mean), given_var = maybe_values(x, population_var);
    if (reads) {
      all_moments<T>(x, mean, var);
      const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, x.M));
      for (int64_t i = 0; i < count; ++i) var[i] *= share;
    } else {
      std::copy(given_mean.begin(), given_mean.end(), mean);
      std::copy(given_var.begin(), given_var.end(), var);
    }
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

struct MixGradients {
  Tensor x, weight, bias;
  std::vector<double> mean_weight, var_weight;
};

// dL/dweight of cells in float64, in the place of S2 = sum of g' * (x - about). Where the variance overflowed y does not depend on
// the weight, and S2 may have overflowed too.
template <class A>
void weight_gradients(int64_t C, const double* s1, double* s2, const A* about, const double* mean, const double* rstd) {
  for (int64_t i = 0; i < C; ++i) s2[i] = rstd[i] == 0 ? 0 : rstd[i] * (s2[i] + (about[i] - mean[i]) * s1[i]);
}

MixGradients gradients(const Tensor& grad, const Tensor& input, const Tensor& moments, const MaybeTensor& weight,
                       const MaybeTensor& bias, const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits,
                       const std::vector<int64_t>& groups, double eps, const MaybeTensor& population_mean,
                       const MaybeTensor& population_var, const Activation& act) {
  Cells x(input);
  const Tensor g = x.match(grad);
  join_samples(x, groups, weight, bias);
  const int64_t C = x.C, cells = x.N * C;
  const double *mean = saved_moments(moments, cells), *var = mean + cells;
  Tensor dx = x.empty_like();
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const auto given_mean = maybe_values(x, population_mean), given_var = maybe_values(x, population_var);
    const auto mean_shares = shares(mean_weight, logits, groups.size()), var_shares = shares(var_weight, logits, groups.size());
    Members members(x, groups, mean, var, maybe_data(given_mean), maybe_data(given_var), mean_shares, var_shares);
    const Parameters<A> parameters(x, weight, bias);
    const Rows<A> rows(x, members.uniform() && !parameters.per_sample());
    const Buffer<A> about(cells);  // sums about the cells' means, rounded, lose the least
    std::copy_n(mean, cells, about.data());
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
        g, x, [&](int64_t n) { return about.data() + n * C; }, [&](int64_t n) { return rows.of(n); }, act, s1, s2);
    parallel(x.N, kLightWork * C, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t at = n * C;
        const A* weight = parameters.weights(n);
        const double *r = rstd.data() + at, *one = s1 + at, *two = s2 + at;
        double *to_mean = grad_mean + at, *to_var = grad_var + at;
        weight_gradients(C, one, s2 + at, about.data() + at, center.data() + at, r);
        for (int64_t i = 0; i < C; ++i) {
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
        const double* mu = mean + n * C;
        const A* center = rows.of(n).center;
        members.cell_gradients(n, mu, of_mean.data(), of_var.data());
        for (int64_t i = 0; i < C; ++i) {
          const double tilt = 2 * of_var[i] * share;
          slopes[n * C + i] = static_cast<A>(tilt);
          offsets[n * C + i] = static_cast<A>(of_mean[i] * share + tilt * (center[i] - mu[i]));
        }
      }
    });
    all_grad_input<T>(
        g, x, dx, [&](int64_t n) { return rows.of(n); },
        [&](int64_t n) { return Slant<A>{slopes.data() + n * C, offsets.data() + n * C}; }, act);
    auto grad_means = members.share_gradients(true), grad_vars = members.share_gradients(false);
    shares_vjp(mean_shares, logits, grad_means);
    shares_vjp(var_shares, logits, grad_vars);
    return MixGradients{dx, parameter_gradient<A>(x, weight, s2), parameter_gradient<A>(x, bias, s1),
                        std::move(grad_means), std::move(grad_vars)};
  });
}

// Where x is normalized by moments that were given: none of its gradient goes through them.
MixGradients given_gradients(const Tensor& grad, const Tensor& input, const Tensor& moments, const MaybeTensor& weight,
                             const MaybeTensor& bias, double eps, bool of_parameters, const Activation& act) {
  Cells x(input);
  const Tensor g = x.match(grad);
  join_samples(x, {0}, weight, bias);
  const int64_t C = x.C, cells = x.N * C;
  const double *mean = saved_moments(moments, C), *var = mean + C;
  Tensor dx = x.empty_like();
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const Parameters<A> parameters(x, weight, bias);
    const Rows<A> rows(x, !parameters.per_sample());
    for (int64_t n = 0; n < rows.count; ++n) fill_row<T>(rows, parameters, n, mean, var, eps);
    const auto affine = [&](int64_t n) { return rows.of(n); };
    const Buffer<double> sums(2 * cells);
    double *s1 = sums.data(), *s2 = s1 + cells;
    if (of_parameters) {
      const Buffer<A> about(C);
      const Buffer<double> rstd(C);
      std::copy_n(mean, C, about.data());
      for (int64_t i = 0; i < C; ++i) rstd[i] = 1 / std::sqrt(var[i] + eps);
      all_grad_sums<T>(g, x, [&](int64_t) { return about.data(); }, affine, act, s1, s2);
      for (int64_t n = 0; n < x.N; ++n) weight_gradients(C, s1 + n * C, s2 + n * C, about.data(), mean, rstd.data());
    } else {
      std::fill_n(s1, 2 * cells, 0.0);
    }
    const std::vector<A> zeros(C);
    if (act.kind == Act::none) {
      // The scale is all there is to it, and x need not be read.
      Cells of_g = x;
      of_g.tensor = g;
      const auto scale = [&](int64_t n) { return Affine<A>{zeros.data(), rows.of(n).scale, zeros.data(), rows.of(n).rest}; };
      all_apply<T>(of_g, dx, scale, act);
    } else {
      all_grad_input<T>(g, x, dx, affine, [&](int64_t) { return Slant<A>{zeros.data(), zeros.data()}; }, act);
    }
    return MixGradients{dx, parameter_gradient<A>(x, weight, s2), parameter_gradient<A>(x, bias, s1), {}, {}};
  });
}

}  // namespace

std::tuple<Tensor, Tensor> mix_norm(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias,
                                    const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits,
                                    std::vector<int64_t> groups, double eps, const MaybeTensor& population_mean,
                                    const MaybeTensor& population_var, const MaybeTensor& running_mean,
                                    const MaybeTensor& running_var, const MaybeTensor& skipped, const MaybeTensor& tracked,
                                    double momentum, int64_t code, double slope) {
  return normalized(input, weight, bias, mean_weight, var_weight, logits, groups, eps, true, population_mean, population_var,
                    running_mean, running_var, skipped, tracked, momentum, {static_cast<Act>(code), slope});
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_norm_backward(
    const Tensor& grad, const Tensor& input, const Tensor& moments, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits, std::vector<int64_t> groups, double eps,
    const MaybeTensor& population_mean, const MaybeTensor& population_var, int64_t code, double slope) {
  const MixGradients of = gradients(grad, input, moments, weight, bias, mean_weight, var_weight, logits, groups, eps,
                                    population_mean, population_var, {static_cast<Act>(code), slope});
  const ScalarType dtype = acc_type(input.scalar_type());
  return {of.x, of.weight, of.bias, share_gradient(mean_weight, of.mean_weight, dtype),
          share_gradient(var_weight, of.var_weight, dtype)};
}

std::tuple<Tensor, Tensor> batch_norm(const Tensor& input, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      bool training, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                      const MaybeTensor& skipped, const MaybeTensor& tracked, double momentum, int64_t code,
                                      double slope) {
  const Activation act{static_cast<Act>(code), slope};
  if (training)
    return normalized(input, weight, bias, {}, {}, false, {0}, eps, true, {}, {}, running_mean, running_var, skipped, tracked,
                      momentum, act);
  STD_TORCH_CHECK(running_mean && running_var, "normwise: evaluation needs running averages");
  return normalized(input, weight, bias, {}, {}, false, {0}, eps, false, running_mean, running_var, {}, {}, {}, {}, 0, act);
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& moments,
                                                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                       bool training, bool of_parameters, int64_t code, double slope) {
  const Activation act{static_cast<Act>(code), slope};
  const MixGradients of = training ? gradients(grad, input, moments, weight, bias, {}, {}, false, {0}, eps, {}, {}, act)
                                   : given_gradients(grad, input, moments, weight, bias, eps, of_parameters, act);
  return {of.x, of.weight, of.bias};
}

}  // namespace normwise
