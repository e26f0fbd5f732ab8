// What autograd keeps of a call of an operator, and how it comes to the gradients.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

namespace normwise {

using torch::autograd::variable_list;
using torch::jit::Stack;

inline at::Tensor tensor_of(const c10::IValue& value) { return value.isTensor() ? value.toTensor() : at::Tensor(); }

inline void call_below_autograd(const c10::OperatorHandle& op, Stack* stack) {
  const at::AutoDispatchBelowAutograd below;
  op.callBoxed(stack);
}

// An operator f(x, ...) -> (y, kept...) and f_backward(g, x, kept..., ...), which differentiates it.
struct Pair {
  // What f_backward takes further: of f's arguments, a tensor or another value; or whether the gradients of tensors but x are wanted.
  enum Kind { kTensor, kValue, kOfParameters };
  struct Argument {
    Kind kind;
    size_t place;  // among f's arguments
  };
  std::string name;
  c10::OperatorHandle forward, backward;
  size_t gradients, kept;           // how many f_backward gives; how many results of f it takes
  std::vector<Argument> arguments;  // of tensors those that have gradients come first

  explicit Pair(const char* of)
      : name(of),
        forward(handle(name)),
        backward(handle(name + "_backward")),
        gradients(backward.schema().returns().size()),
        kept(forward.schema().returns().size() - 1) {
    const auto& takes = backward.schema().arguments();
    for (size_t i = 2 + kept; i < takes.size(); ++i) {
      const auto place = forward.schema().argumentIndexWithName(takes[i].name());
      TORCH_INTERNAL_ASSERT(place.has_value() || takes[i].name() == "of_parameters");
      const bool is_tensor = takes[i].type()->isSubtypeOf(*c10::OptionalType::ofTensor());
      arguments.push_back({place ? is_tensor ? kTensor : kValue : kOfParameters, static_cast<size_t>(place.value_or(0))});
    }
  }

  // The tensors of a call that have gradients; an undefined one in the place of what is absent.
  variable_list inputs(const Stack& call) const {
    variable_list result;
    result.reserve(gradients);
    result.push_back(call.front().toTensor());
    for (const Argument& a : arguments)
      if (a.kind == kTensor && result.size() < gradients) result.push_back(tensor_of(call[a.place]));
    return result;
  }

  // Their gradients, from those of y and what was saved: x, what was kept and the other tensors, and the values.
  variable_list differentiate(const at::Tensor& g, const variable_list& tensors, const std::vector<c10::IValue>& values,
                              bool of_parameters) const {
    if (!g.defined()) return variable_list(gradients);
    Stack stack;
    stack.reserve(2 + kept + arguments.size());
    stack.emplace_back(g);
    auto tensor = tensors.begin();
    const auto push_tensor = [&] {
      if (const at::Tensor& t = *tensor++; t.defined()) stack.emplace_back(t);
      else stack.emplace_back();
    };
    for (size_t i = 0; i < 1 + kept; ++i) push_tensor();
    auto value = values.begin();
    for (const Argument& a : arguments) {
      if (a.kind == kTensor) push_tensor();
      else if (a.kind == kValue) stack.push_back(*value++);
      else stack.emplace_back(of_parameters);
    }
    // With create_graph=True the gradients have a graph, which Python makes.
    if (at::GradMode::is_enabled()) backward.callBoxed(&stack);
    else call_below_autograd(backward, &stack);
    variable_list found;
    found.reserve(gradients);
    for (const c10::IValue& gradient : stack) found.push_back(tensor_of(gradient));
    return found;
  }

 private:
  static c10::OperatorHandle handle(const std::string& name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
  }
};

enum Which : int64_t { kSampleNorm, kBatchNorm, kMixNorm, kLayerNorm };

inline const Pair& pair(Which which) {
  static const std::array<Pair, 4> pairs{Pair("normwise::sample_norm"), Pair("normwise::batch_norm"), Pair("normwise::mix_norm"),
                                         Pair("normwise::layer_norm")};
  return pairs[which];
}

// Not torch::autograd::Function: that keeps what it is given under names, and with small tensors takes as long as the gradients.
class Backward : public torch::autograd::Node {
  const Which which;
  std::vector<torch::autograd::SavedVariable> tensors;
  std::vector<c10::IValue> values;

 public:
  Backward(Which which, const variable_list& inputs, const Stack& call)
      : Node(torch::autograd::collect_next_edges(inputs)), which(which) {
    const Pair& op = pair(which);
    tensors.reserve(1 + op.kept + op.arguments.size());
    tensors.emplace_back(inputs[0], false);
    for (size_t i = 0; i < op.kept; ++i) tensors.emplace_back();
    for (const auto& a : op.arguments) {
      if (a.kind == Pair::kTensor) tensors.emplace_back(tensor_of(call[a.place]), false);
      else if (a.kind == Pair::kValue) values.push_back(call[a.place]);
    }
  }

  void save_results(const Stack& results) {
    for (size_t i = 1; i < results.size(); ++i) tensors[i] = {results[i].toTensor(), false};
  }

  std::string name() const override { return pair(which).name + "_backward"; }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    bool of_parameters = false;
    for (size_t i = 1; i < num_outputs(); ++i) of_parameters |= task_should_compute_output(i);
    return pair(which).differentiate(grads[0], unpacked(), values, of_parameters);
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& t : tensors) t.reset_data();
  }

  // Compiled autograd asks for what makes one node unlike another, and has the gradients computed when its graph runs.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(static_cast<int64_t>(which));
    args.collect(tensors, false);
    args.collect(values);
  }

  variable_list apply_with_saved(const variable_list& grads, torch::dynamo::autograd::SwapSavedVariables& saved) override {
    using namespace torch::dynamo::autograd;
    saved.before(tensors);
    saved.before(values);
    PackedArgs packed;
    packed.pack(static_cast<int64_t>(which));
    packed.pack(unpacked());
    for (const auto& value : values) packed.pack(value);
    std::vector<at::TypePtr> types;
    for (const auto& value : packed.vec()) types.push_back(value.type());
    const auto& compiler = getPyCompilerInterface();
    const std::string function = compiler->bind_function(saved.get_py_compiler(), name(), differentiate, types, true, false);
    const auto edges = IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(get_input_metadata(next_edges()));
    auto found = compiler->call_function(saved.get_py_compiler(), "apply_functional", function, grads, packed.vec(), edges);
    saved.after(tensors);
    saved.after(values);
    return found;
  }

 private:
  variable_list unpacked() const {
    variable_list result;
    result.reserve(tensors.size());
    for (const auto& t : tensors) result.push_back(t.unpack());
    return result;
  }

  static variable_list differentiate(const variable_list& grads, const std::vector<c10::IValue>& packed) {
    const Pair& op = pair(static_cast<Which>(packed[0].toInt()));
    return op.differentiate(grads[0], packed[1].toTensorVector(), {packed.begin() + 2, packed.end()}, true);
  }
};

// A graph's pointer to a node: which kind it is depends on torch's version.
using NodePointer = decltype(torch::autograd::Edge::function);
template <class N, class P = NodePointer, class... A> P make_node(A&&... args) {
  N* node = new N(std::forward<A>(args)...);
  if constexpr (std::is_same_v<P, std::shared_ptr<torch::autograd::Node>>) return P(node, [](N* n) { deleteNode(n); });
  else return P::unsafe_steal_from_new(node);
}

// Calls the operator, and where a gradient is wanted gives its result a node. No argument may have a tangent.
template <Which which> void run(Stack* stack) {
  const Pair& op = pair(which);
  const auto wants = [](const c10::IValue& value) { return value.isTensor() && value.toTensor().requires_grad(); };
  if (!at::GradMode::is_enabled() || std::none_of(stack->begin(), stack->end(), wants)) return call_below_autograd(op.forward, stack);
  const auto node = make_node<Backward>(which, op.inputs(*stack), *stack);
  call_below_autograd(op.forward, stack);
  static_cast<Backward&>(*node).save_results(*stack);
  torch::autograd::set_history(stack->front().toTensor(), node);
}

}  // namespace normwise
