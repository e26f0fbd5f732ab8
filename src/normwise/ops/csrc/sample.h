// Normalization that pools within a sample (instance, group, layer): both passes while a group is in cache.
#pragma once

#include "tensors.h"

namespace normwise {

std::tuple<Tensor, Tensor, Tensor> sample_norm(const Tensor& input, int64_t groups, const std::optional<Tensor>& weight,
                                               const std::optional<Tensor>& bias, double eps, int64_t code, double slope);

std::tuple<Tensor, Tensor, Tensor> sample_norm_backward(const Tensor& grad, const Tensor& input, const Tensor& mean,
                                                        const Tensor& var, int64_t groups,
                                                        const std::optional<Tensor>& weight,
                                                        const std::optional<Tensor>& bias, double eps, int64_t code,
                                                        double slope);

}  // namespace normwise
