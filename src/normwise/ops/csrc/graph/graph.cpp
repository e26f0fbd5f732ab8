// Autograd in C++ for the operators that normalize in one call, and torch's layer norm as one of them.
//
// A library of its own: autograd's C++ interface is no part of torch's stable ABI, so this one serves the torch that it was
// built with and no other. Without it mixes.py puts the same two calls into an autograd function in Python.
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/native_layer_norm_backward.h>
#include <torch/library.h>

#include "node.h"

namespace normwise {
namespace {

template <Which which> void differentiable(const c10::OperatorHandle&, Stack* stack) {
  const Pair& op = pair(which);
  const variable_list inputs = op.inputs(*stack);
  for (const at::Tensor& t : inputs)
    TORCH_CHECK_NOT_IMPLEMENTED(!torch::autograd::isFwGradDefined(t), op.name, " has no derivative in forward mode");
  if (!at::GradMode::is_enabled() || !torch::autograd::any_variable_requires_grad(inputs))
    return call_below_autograd(op.forward, stack);
  const auto node = make_node<Backward>(which, inputs, *stack);
  call_below_autograd(op.forward, stack);
  static_cast<Backward&>(*node).save_results(*stack);
  torch::autograd::set_history(stack->front().toTensor(), node);
}

// torch's kernels, whose own graph has wrong third derivatives.
std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm(const at::Tensor& x, at::IntArrayRef shape,
                                                          const std::optional<at::Tensor>& weight,
                                                          const std::optional<at::Tensor>& bias, double eps) {
  return at::native_layer_norm(x, shape, weight, bias, eps);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_norm_backward(const at::Tensor& g, const at::Tensor& x,
                                                                   const at::Tensor& mean, const at::Tensor& rstd,
                                                                   const std::optional<at::Tensor>& weight,
                                                                   const std::optional<at::Tensor>& bias, at::IntArrayRef shape,
                                                                   double, bool of_parameters) {
  const std::array<bool, 3> wanted{true, of_parameters && weight, of_parameters && bias};
  return at::native_layer_norm_backward(g, x, shape, mean, rstd, weight, bias, wanted);
}

}  // namespace
}  // namespace normwise

TORCH_LIBRARY_FRAGMENT(normwise, m) {
  m.def("layer_norm(Tensor x, int[] shape, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "layer_norm_backward(Tensor g, Tensor x, Tensor mean, Tensor rstd, Tensor? weight, Tensor? bias, int[] shape, float eps, "
      "bool of_parameters) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(normwise, CompositeExplicitAutograd, m) {
  m.impl("layer_norm", normwise::layer_norm);
  m.impl("layer_norm_backward", normwise::layer_norm_backward);
}

TORCH_LIBRARY_IMPL(normwise, Autograd, m) {
  using namespace normwise;
  m.impl("sample_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kSampleNorm>>());
  m.impl("batch_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kBatchNorm>>());
  m.impl("mix_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kMixNorm>>());
  m.impl("layer_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kLayerNorm>>());
}
