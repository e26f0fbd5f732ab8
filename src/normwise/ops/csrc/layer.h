// Normalization without spatial axes: over the last axes (layer norm; about 0, RMS norm), and of the groups of (N, C).
#pragma once

#include "tensors.h"

namespace normwise {

// Writes y, and the moments (samples, groups). Parameters have as many values as x has channels, in any shape.
template <class T>
void normalize_vectors(const Cells& x, const Tensor& y, Vectors of, const MaybeTensor& weight, const MaybeTensor& bias,
                       const Activation& act, double* mean, double* var);

// The gradients of x, weight and bias; the latter shaped like what was given, or (C,).
template <class T>
std::tuple<Tensor, Tensor, Tensor> vector_gradients(const Tensor& g, const Cells& x, Vectors of, const MaybeTensor& weight,
                                                    const MaybeTensor& bias, const Activation& act, const double* mean,
                                                    const double* var);

std::tuple<Tensor, Tensor> layer_norm(const Tensor& x, int64_t axes, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      bool centered, int64_t activation, double slope);

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& g, const Tensor& x, const Tensor& moments, int64_t axes,
                                                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                       bool centered, int64_t activation, double slope);

}  // namespace normwise
