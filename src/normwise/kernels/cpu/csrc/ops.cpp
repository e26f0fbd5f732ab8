// The operators `torch.ops.normwise.*`: the four kernels, and the fused ones of sample.cpp. native.py documents them.
#include "cells.h"
#include "layer.h"
#include "mix.h"
#include "sample.h"

namespace normwise {
namespace {

// An affine as the caller computed it, which tells nothing of what rounding took.
template <class A> struct GivenAffine {
  PerCell<A> center, scale, shift;
  GivenAffine(const Cells& x, const Tensor& center, const Tensor& scale, const Tensor& shift)
      : center(center, x), scale(scale, x), shift(shift, x) {}
  Affine<A> operator()(int64_t n) const { return {center.sample(n), scale.sample(n), shift.sample(n), nullptr}; }
};

Activation activation(int64_t code, double slope) { return {static_cast<Act>(code), slope}; }

std::tuple<Tensor, Tensor> moments(const Tensor& input) {
  const Cells x(input);
  const ScalarType dtype = acc_type(input.scalar_type());
  Tensor mean = empty({x.N, x.C}, dtype), var = empty({x.N, x.C}, dtype);
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const Buffer<double> sums(2 * x.N * x.C);
    double *mu = sums.data(), *m2 = mu + x.N * x.C;
    all_moments<T>(x, mu, m2);
    A *to_mean = data<A>(mean), *to_var = data<A>(var);
    const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, x.M));
    for (int64_t i = 0; i < x.N * x.C; ++i) {
      to_mean[i] = static_cast<A>(mu[i]);
      to_var[i] = static_cast<A>(m2[i] * share);
    }
  });
  return {mean, var};
}

Tensor apply(const Tensor& input, const Tensor& center, const Tensor& scale, const Tensor& shift, int64_t code,
             double slope) {
  const Cells x(input);
  Tensor y = x.empty_like();
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const GivenAffine<A> affine(x, center, scale, shift);
    all_apply<T>(x, y, affine, activation(code, slope));
  });
  return y;
}

std::tuple<Tensor, Tensor> grad_sums(const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& center,
                                     const Tensor& scale, const Tensor& shift, int64_t code, double slope) {
  const Cells x(input);
  const Tensor g = x.match(grad);
  const ScalarType dtype = acc_type(input.scalar_type());
  Tensor s1 = empty({x.N, x.C}, dtype), s2 = empty({x.N, x.C}, dtype);
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const PerCell<A> mu(mean, x);
    const GivenAffine<A> affine(x, center, scale, shift);
    const int64_t cells = x.N * x.C;
    const Buffer<double> sums(2 * cells);
    all_grad_sums<T>(
        g, x, [&](int64_t n) { return mu.sample(n); }, affine, activation(code, slope), sums.data(), sums.data() + cells);
    std::copy_n(sums.data(), cells, data<A>(s1));
    std::copy_n(sums.data() + cells, cells, data<A>(s2));
  });
  return {s1, s2};
}

Tensor grad_input(const Tensor& grad, const Tensor& input, const Tensor& mean, const Tensor& center, const Tensor& scale,
                  const Tensor& shift, const Tensor& grad_mean, const Tensor& grad_var, int64_t code, double slope) {
  const Cells x(input);
  const Tensor g = x.match(grad);
  Tensor dx = x.empty_like();
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    const PerCell<A> mu(mean, x), gm(grad_mean, x), gv(grad_var, x);
    const GivenAffine<A> affine(x, center, scale, shift);
    // About the centre, where they were given about the mean; in one row if that is the same for all samples.
    const bool shared = gm.stride == 0 && gv.stride == 0 && mu.stride == 0 && affine.center.stride == 0;
    const int64_t rows = shared ? std::min<int64_t>(1, x.N) : x.N, stride = shared ? 0 : x.C;
    const double share = 1.0 / static_cast<double>(std::max<int64_t>(1, x.M));
    const Buffer<A> slopes(rows * x.C), offsets(rows * x.C);
    for (int64_t n = 0; n < rows; ++n)
      for (int64_t i = 0; i < x.C; ++i) {
        const double tilt = 2 * share * gv.sample(n)[i], way = affine(n).center[i] - static_cast<double>(mu.sample(n)[i]);
        slopes[n * x.C + i] = static_cast<A>(tilt);
        offsets[n * x.C + i] = static_cast<A>(share * gm.sample(n)[i] + tilt * way);
      }
    all_grad_input<T>(
        g, x, dx, affine, [&](int64_t n) { return Slant<A>{slopes.data() + n * stride, offsets.data() + n * stride}; },
        activation(code, slope));
  });
  return dx;
}

int64_t isa() { return isa_level(); }

}  // namespace

STABLE_TORCH_LIBRARY(normwise, m) {
  m.def("isa() -> int");
  m.def("moments(Tensor x) -> (Tensor, Tensor)");
  m.def("apply(Tensor x, Tensor center, Tensor scale, Tensor shift, int activation, float slope) -> Tensor");
  m.def(
      "grad_sums(Tensor g, Tensor x, Tensor mean, Tensor center, Tensor scale, Tensor shift, int activation, float slope) "
      "-> (Tensor, Tensor)");
  m.def(
      "grad_input(Tensor g, Tensor x, Tensor mean, Tensor center, Tensor scale, Tensor shift, Tensor grad_mean, "
      "Tensor grad_var, int activation, float slope) -> Tensor");
  m.def("sample_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, int activation, float slope) -> (Tensor, Tensor)");
  m.def(
      "sample_norm_backward(Tensor g, Tensor x, Tensor moments, int groups, Tensor? weight, Tensor? bias, float eps, "
      "int activation, float slope) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm(Tensor x, int axes, Tensor? weight, Tensor? bias, float eps, bool centered, int activation, float slope) "
      "-> (Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor g, Tensor x, Tensor moments, int axes, Tensor? weight, Tensor? bias, float eps, bool centered, "
      "int activation, float slope) -> (Tensor, Tensor, Tensor)");
  m.def(
      "batch_norm(Tensor x, Tensor? weight, Tensor? bias, float eps, bool training, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? skipped, Tensor(d!)? tracked, float momentum, int activation, float slope) "
      "-> (Tensor, Tensor)");
  m.def(
      "batch_norm_backward(Tensor g, Tensor x, Tensor moments, Tensor? weight, Tensor? bias, float eps, bool training, "
      "bool of_parameters, int activation, float slope) -> (Tensor, Tensor, Tensor)");
  m.def(
      "mix_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean_weight, Tensor? var_weight, bool logits, "
      "int[] groups, float eps, Tensor? population_mean, Tensor? population_var, Tensor(a!)? running_mean, "
      "Tensor(b!)? running_var, Tensor(c!)? skipped, Tensor(d!)? tracked, float momentum, int activation, float slope) "
      "-> (Tensor, Tensor)");
  m.def(
      "mix_norm_backward(Tensor g, Tensor x, Tensor moments, Tensor? weight, Tensor? bias, Tensor? mean_weight, "
      "Tensor? var_weight, bool logits, int[] groups, float eps, Tensor? population_mean, Tensor? population_var, "
      "int activation, float slope) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(normwise, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&isa)); }

STABLE_TORCH_LIBRARY_IMPL(normwise, CPU, m) {
  m.impl("moments", TORCH_BOX(&moments));
  m.impl("apply", TORCH_BOX(&apply));
  m.impl("grad_sums", TORCH_BOX(&grad_sums));
  m.impl("grad_input", TORCH_BOX(&grad_input));
  m.impl("sample_norm", TORCH_BOX(&sample_norm));
  m.impl("sample_norm_backward", TORCH_BOX(&sample_norm_backward));
  m.impl("layer_norm", TORCH_BOX(&layer_norm));
  m.impl("layer_norm_backward", TORCH_BOX(&layer_norm_backward));
  m.impl("batch_norm", TORCH_BOX(&batch_norm));
  m.impl("batch_norm_backward", TORCH_BOX(&batch_norm_backward));
  m.impl("mix_norm", TORCH_BOX(&mix_norm));
  m.impl("mix_norm_backward", TORCH_BOX(&mix_norm_backward));
}

}  // namespace normwise
