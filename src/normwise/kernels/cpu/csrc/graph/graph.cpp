// Autograd in C++ for the operators that normalize in one call.
//
// A library of its own: autograd's C++ interface is no part of torch's stable ABI, so this one serves the torch that it was
// built with and no other. Without it mixes.py puts the same two calls into an autograd function in Python.
#include <torch/library.h>

#include "node.h"

namespace normwise {
namespace {

template <Which which> void differentiable(const c10::OperatorHandle&, Stack* stack) {
  for (const c10::IValue& value : *stack)
    TORCH_CHECK_NOT_IMPLEMENTED(!value.isTensor() || !torch::autograd::isFwGradDefined(value.toTensor()), pair(which).name,
                                " has no derivative in forward mode");
  run<which>(stack);
}

}  // namespace
}  // namespace normwise

TORCH_LIBRARY_IMPL(normwise, Autograd, m) {
  using namespace normwise;
  m.impl("sample_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kSampleNorm>>());
  m.impl("batch_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kBatchNorm>>());
  m.impl("mix_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kMixNorm>>());
  m.impl("layer_norm", torch::CppFunction::makeFromBoxedFunction<&differentiable<kLayerNorm>>());
}
