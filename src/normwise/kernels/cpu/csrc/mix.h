// Normalization by a mix of pooled moments, whole: moments, pools and mix, apply; and its gradients, by a closed-form vjp.
//
// A member of the mix is named by the groups that it pools over within a sample (1 is layer norm, C instance norm), or by 0
// for the pool over samples. Batch norm is the mix of that one alone; for one within a sample sample.h is faster.
#pragma once

#include "tensors.h"

namespace normwise {

std::tuple<Tensor, Tensor> mix_norm(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias,
                                    const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits,
                                    std::vector<int64_t> groups, double eps, const MaybeTensor& population_mean,
                                    const MaybeTensor& population_var, const MaybeTensor& running_mean,
                                    const MaybeTensor& running_var, const MaybeTensor& skipped, const MaybeTensor& tracked,
                                    double momentum, int64_t activation, double slope);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mix_norm_backward(
    const Tensor& g, const Tensor& x, const Tensor& moments, const MaybeTensor& weight, const MaybeTensor& bias,
    const MaybeTensor& mean_weight, const MaybeTensor& var_weight, bool logits, std::vector<int64_t> groups, double eps,
    const MaybeTensor& population_mean, const MaybeTensor& population_var, int64_t activation, double slope);

// The pool over samples alone: with small tensors what an operator takes and gives is most of its time. Its moments are the
// batch's or, out of training, the running averages; then the gradients of the parameters are computed where they are wanted.
std::tuple<Tensor, Tensor> batch_norm(const Tensor& x, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      bool training, const MaybeTensor& running_mean, const MaybeTensor& running_var,
                                      const MaybeTensor& skipped, const MaybeTensor& tracked, double momentum,
                                      int64_t activation, double slope);

std::tuple<Tensor, Tensor, Tensor> batch_norm_backward(const Tensor& g, const Tensor& x, const Tensor& moments,
                                                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                       bool training, bool of_parameters, int64_t activation, double slope);

}  // namespace normwise
