#include "layer.h"

namespace normwise {
namespace {

void check_shape(const Tensor& x, int64_t axes, const MaybeTensor& t) {
  if (!t) return;
  const int64_t skipped = x.dim() - axes;
  bool fits = t->dim() == axes;
  for (int64_t i = 0; fits && i < axes; ++i) fits = t->size(i) == x.size(skipped + i);
  STD_TORCH_CHECK(fits, "normwise: expected parameters of the shape of the last ", axes, " axes");
}

MaybeTensor flat(const MaybeTensor& t) { return t && t->dim() != 1 ? MaybeTensor(torch::stable::flatten(*t, 0, -1)) : t; }

}  // namespace

std::tuple<Tensor, Tensor> layer_norm(const Tensor& input, int64_t axes, const MaybeTensor& weight, const MaybeTensor& bias,
                                      double eps, bool centered, int64_t code, double slope) {
  const Cells x(input, axes);
  check_shape(input, axes, weight), check_shape(input, axes, bias);
  Tensor y = x.empty_like(), moments = empty({2, x.N}, ScalarType::Double);
  with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    double* mean = data<double>(moments);
    const Vectors of{x.N, 1, x.C, eps, centered};
    const Parameters<acc_t<T>> parameters(x, flat(weight), flat(bias));
    normalize_vectors<T>(x, y, of, parameters, {static_cast<Act>(code), slope}, mean, mean + x.N);
  });
  return {y, moments};
}

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& moments, int64_t axes,
                                                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                       bool centered, int64_t code, double slope) {
  const Cells x(input, axes);
  check_shape(input, axes, weight), check_shape(input, axes, bias);
  const Tensor g = x.match(grad);
  return with_dtype(input.scalar_type(), [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const double* mean = saved_moments(moments, x.N);
    const Vectors of{x.N, 1, x.C, eps, centered};
    const Parameters<acc_t<T>> parameters(x, flat(weight), flat(bias));
    return vector_gradients<T>(g, x, of, parameters, weight, bias, {static_cast<Act>(code), slope}, mean, mean + x.N);
  });
}

}  // namespace normwise
