// Normalization without spatial axes: over the last axes (layer norm; about 0, RMS norm), and of the groups of (N, C).
#pragma once

#include "cells.h"

namespace normwise {

std::tuple<Tensor, Tensor> layer_norm(const Tensor& x, int64_t axes, const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                      bool centered, int64_t activation, double slope);

std::tuple<Tensor, Tensor, Tensor> layer_norm_backward(const Tensor& g, const Tensor& x, const Tensor& moments, int64_t axes,
                                                       const MaybeTensor& weight, const MaybeTensor& bias, double eps,
                                                       bool centered, int64_t activation, double slope);

// Sums over more samples than this would lose digits in float32; and so many threads find work where there are fewer.
constexpr int64_t kMostSamples = 64, kPieces = 16;

// Whether what is written goes past the caches, which takes vectors that begin where a line of memory does.
template <class T> bool streams_vectors(const Cells& x, const Vectors& of, const void* to, int64_t tensors) {
  constexpr int64_t line = 64;
  return streams<T>(x, tensors) && of.length * int64_t{sizeof(T)} % line == 0 && reinterpret_cast<uintptr_t>(to) % line == 0;
}

// Writes y, and the moments (samples, groups).
template <class T>
void normalize_vectors(const Cells& x, const Tensor& y, Vectors of, const Parameters<acc_t<T>>& parameters, const Activation& act,
                       double* mean, double* var) {
  if (x.numel() == 0) return;
  const Learned<acc_t<T>> given{parameters.weights(0), parameters.biases(0)};
  const auto& k = kernels<T>();
  const T* from = const_data<T>(x.tensor);
  T* to = data<T>(y);
  of.streams = streams_vectors<T>(x, of, to, 2);
  parallel(x.N, x.C, [&](int64_t begin, int64_t end) {
    Vectors part = of;
    part.samples = end - begin;
    const int64_t at = begin * x.C, group = begin * of.groups;
    k.vector_norm(from + at, to + at, part, given, act, mean + group, var + group);
  });
}

// The gradients of x, and of weight and bias as they were given: shaped like them, or (C,).
template <class T>
std::tuple<Tensor, Tensor, Tensor> vector_gradients(const Tensor& g, const Cells& x, Vectors of,
                                                    const Parameters<acc_t<T>>& parameters, const MaybeTensor& weight,
                                                    const MaybeTensor& bias, const Activation& act, const double* mean,
                                                    const double* var) {
  using A = acc_t<T>;
  const Learned<A> given{parameters.weights(0), parameters.biases(0)};
  const auto& k = kernels<T>();
  Tensor dx = x.empty_like();
  const T *gp = const_data<T>(g), *xp = const_data<T>(x.tensor);
  T* to = data<T>(dx);
  of.streams = streams_vectors<T>(x, of, to, 3);
  // Every piece of the samples has sums of its own. Cut the same for any number of threads, and with no more room for sums than
  // x takes.
  const int64_t N = std::max<int64_t>(1, x.N), fewest = (N + kMostSamples - 1) / kMostSamples;
  const int64_t size = N / std::max(fewest, std::min({kPieces, N / 2, x.numel() / kGrain})), pieces = (N + size - 1) / size;
  const Buffer<A> sums(pieces * 2 * x.C);
  std::fill_n(sums.data(), pieces * 2 * x.C, A(0));
  parallel(x.numel() > 0 ? pieces : 0, size * x.C, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const int64_t n = piece * size, at = n * x.C, group = n * of.groups;
      Vectors part = of;
      part.samples = std::min(size, N - n);
      A* of_weight = sums.data() + piece * 2 * x.C;
      k.vector_norm_grad(gp + at, xp + at, to + at, part, given, act, mean + group, var + group, of_weight, of_weight + x.C);
    }
  });
  const Buffer<double> total(2 * x.C);
  add_rows(sums.data(), pieces, 2 * x.C, total.data());
  return {dx, shaped_like<A>(weight, x.C, total.data()), shaped_like<A>(bias, x.C, total.data() + x.C)};
}

}  // namespace normwise
