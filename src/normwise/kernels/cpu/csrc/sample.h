// Normalization that pools within a sample (instance, group, layer): both passes while a group is in cache.
#pragma once

#include "tensors.h"

namespace normwise {

std::tuple<Tensor, Tensor> sample_norm(const Tensor& x, int64_t groups, const MaybeTensor& weight, const MaybeTensor& bias,
                                       double eps, int64_t activation, double slope);

std::tuple<Tensor, Tensor, Tensor> sample_norm_backward(const Tensor& g, const Tensor& x, const Tensor& moments, int64_t groups,
                                                        const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                        int64_t activation, double slope);

}  // namespace normwise
