// Autograd in C++ for the operators that normalize in one call: `f(x, ...) -> (y, moments)`, whose gradients
// `f_backward(g, x, moments, ...)` takes the arguments of f by their names and gives those of f's first tensors.
//
// A library of its own: autograd's C++ interface is no part of torch's stable ABI, so this one serves the torch that it was
// built with and no other. Without it mixes.py puts the same two calls into an autograd function in Python.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

namespace normwise {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using torch::jit::Stack;

// An operator and the one that differentiates it.
struct Pair {
  c10::OperatorHandle forward, backward;
  size_t gradients;                                    // how many the latter gives
  std::vector<size_t> tensors, values;                 // where the former's arguments stand that the latter takes
  std::vector<std::pair<bool, size_t>> arguments;      // the latter's from the fourth on: a tensor or not, and which of these

  explicit Pair(const std::string& name)
      : forward(c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "")),
        backward(c10::Dispatcher::singleton().findSchemaOrThrow((name + "_backward").c_str(), "")),
        gradients(backward.schema().returns().size()) {
    const auto& takes = backward.schema().arguments();
    for (size_t i = kGiven; i < takes.size(); ++i) {
      const auto at = forward.schema().argumentIndexWithName(takes[i].name());
      TORCH_INTERNAL_ASSERT(at.has_value());
      const bool tensor = takes[i].type()->isSubtypeOf(*c10::OptionalType::ofTensor());
      auto& kind = tensor ? tensors : values;
      arguments.emplace_back(tensor, kind.size());
      kind.push_back(static_cast<size_t>(*at));
    }
  }

  static constexpr size_t kGiven = 3;  // g, x, moments
};

void call_below_autograd(const c10::OperatorHandle& op, Stack* stack) {
  const at::AutoDispatchBelowAutograd below;
  op.callBoxed(stack);
}

at::Tensor tensor_of(const c10::IValue& value) { return value.isTensor() ? value.toTensor() : at::Tensor(); }

template <class Op> struct Graph : torch::autograd::Function<Graph<Op>> {
  // Leaves the moments on the stack: they are for the backward pass and carry no gradient.
  static variable_list forward(AutogradContext* ctx, at::TensorList, Stack* stack) {
    const Pair& op = Op::pair();
    variable_list saved{stack->front().toTensor(), {}};
    saved.reserve(saved.size() + op.tensors.size());
    ctx->saved_data.reserve(2 * op.values.size());
    for (size_t i : op.tensors) saved.push_back(tensor_of((*stack)[i]));
    for (size_t i : op.values) ctx->saved_data[op.forward.schema().arguments()[i].name()] = (*stack)[i];
    call_below_autograd(op.forward, stack);
    saved[1] = (*stack)[1].toTensor();
    ctx->save_for_backward(std::move(saved));
    return {stack->front().toTensor()};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Pair& op = Op::pair();
    const variable_list saved = ctx->get_saved_variables();
    Stack stack{std::move(grads[0]), saved[0], saved[1]};
    stack.reserve(stack.size() + op.arguments.size());
    for (auto [tensor, i] : op.arguments) {
      if (!tensor) stack.push_back(ctx->saved_data[op.forward.schema().arguments()[op.values[i]].name()]);
      else if (const at::Tensor& t = saved[i + 2]; t.defined()) stack.emplace_back(t);
      else stack.emplace_back();
    }
    // With create_graph=True the gradients have a graph, which Python makes.
    if (at::GradMode::is_enabled()) op.backward.callBoxed(&stack);
    else call_below_autograd(op.backward, &stack);
    variable_list found{stack[0].toTensor()};
    for (size_t i = 1; i < op.gradients; ++i)
      if (saved[i + 1].defined()) found.push_back(tensor_of(stack[i]));
    found.emplace_back();  // of the stack, the other argument of forward
    return found;
  }
};

template <class Op> void differentiable(const c10::OperatorHandle&, Stack* stack) {
  const Pair& op = Op::pair();
  variable_list inputs{stack->front().toTensor()};
  for (size_t i = 0; i + 1 < op.gradients; ++i)
    if (at::Tensor t = tensor_of((*stack)[op.tensors[i]]); t.defined()) inputs.push_back(std::move(t));
  if (at::GradMode::is_enabled() && torch::autograd::any_variable_requires_grad(inputs)) {
    stack->front() = Graph<Op>::apply(at::TensorList(inputs), stack)[0];
  } else {
    call_below_autograd(op.forward, stack);
  }
}

struct SampleNorm {
  static const Pair& pair() {
    static const Pair op("normwise::sample_norm");
    return op;
  }
};

struct BatchNorm {
  static const Pair& pair() {
    static const Pair op("normwise::batch_norm");
    return op;
  }
};

struct MixNorm {
  static const Pair& pair() {
    static const Pair op("normwise::mix_norm");
    return op;
  }
};

}  // namespace
}  // namespace normwise

TORCH_LIBRARY_IMPL(normwise, Autograd, m) {
  m.impl("sample_norm", torch::CppFunction::makeFromBoxedFunction<&normwise::differentiable<normwise::SampleNorm>>());
  m.impl("batch_norm", torch::CppFunction::makeFromBoxedFunction<&normwise::differentiable<normwise::BatchNorm>>());
  m.impl("mix_norm", torch::CppFunction::makeFromBoxedFunction<&normwise::differentiable<normwise::MixNorm>>());
}
