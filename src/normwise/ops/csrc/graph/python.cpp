// The same operators as functions of Python, each of which gives the normalized tensor alone.
//
// The way through torch.ops converts arguments and results by a schema, whatever they are, and takes half of what a small
// tensor takes altogether. Here it is a vector call; what is out of the ordinary is left to torch.ops.
#if __has_include(<Python.h>)
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/record_function.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "node.h"

namespace normwise {
namespace {

// Whether a call of x meets autograd and nobody else on its way to the CPU's kernel: no transform, autocast, tracer or profiler,
// no other device or kind of tensor.
bool is_ordinary(const at::Tensor& x) {
  const auto here = c10::impl::tls_local_dispatch_key_set();
  const auto others = ((x.key_set() | here.included_) - here.excluded_) - c10::autograd_dispatch_keyset_with_ADInplaceOrView -
                      c10::DispatchKeySet(c10::DispatchKey::BackendSelect);  // which chooses for calls without a tensor
  if (here.excluded_.has(c10::DispatchKey::AutogradFunctionality) && at::GradMode::is_enabled()) return false;
  return others.highestPriorityTypeId() == c10::DispatchKey::CPU && !at::hasCallbacks() && !at::impl::torch_function_mode_enabled();
}

// The types of an operator's arguments, those of optional ones included.
std::vector<c10::TypeKind> argument_types(const c10::FunctionSchema& schema) {
  std::vector<c10::TypeKind> kinds;
  for (const auto& argument : schema.arguments()) {
    const auto optional = argument.type()->cast<c10::OptionalType>();
    kinds.push_back((optional ? optional->getElementType() : argument.type())->kind());
  }
  return kinds;
}

c10::List<int64_t> integers(PyObject* tuple) {
  TORCH_CHECK_TYPE(PyTuple_Check(tuple), "expected a tuple of integers");
  c10::List<int64_t> result;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) result.push_back(PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, i)));
  return result;
}

c10::IValue value_of(PyObject* object, c10::TypeKind kind) {
  if (object == Py_None) return {};
  switch (kind) {
    case c10::TypeKind::TensorType: return THPVariable_Unpack(object);
    case c10::TypeKind::FloatType: return PyFloat_AsDouble(object);
    case c10::TypeKind::IntType: return static_cast<int64_t>(PyLong_AsLongLong(object));
    case c10::TypeKind::BoolType: return PyObject_IsTrue(object) == 1;
    default: return integers(object);
  }
}

// None where the call is out of the ordinary.
template <Which which> PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static const std::vector<c10::TypeKind> kinds = argument_types(pair(which).forward.schema());
  TORCH_CHECK_TYPE(static_cast<size_t>(count) == kinds.size(), "expected ", kinds.size(), " arguments, got ", count);
  Stack stack;
  stack.reserve(kinds.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    const bool other = kinds[i] == c10::TypeKind::TensorType && args[i] != Py_None && !THPVariable_CheckExact(args[i]);
    if (other) Py_RETURN_NONE;
    stack.push_back(value_of(args[i], kinds[i]));
  }
  if (PyErr_Occurred()) return nullptr;
  const at::Tensor& x = stack.front().toTensor();
  if (!is_ordinary(x)) Py_RETURN_NONE;
  {
    // Others may go on meanwhile, if it takes longer than handing over to them.
    constexpr int64_t many = 16384;
    std::optional<pybind11::gil_scoped_release> released;
    if (x.numel() > many) released.emplace();
    run<which>(&stack);
  }
  return THPVariable_Wrap(std::move(stack.front()).toTensor());
  END_HANDLE_TH_ERRORS
}

template <Which which> PyMethodDef method(const char* name) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&normalize<which>)), METH_FASTCALL, nullptr};
}

}  // namespace
}  // namespace normwise

PyMODINIT_FUNC PyInit__graph() {
  using namespace normwise;
  static PyMethodDef methods[] = {method<kSampleNorm>("sample_norm"), method<kBatchNorm>("batch_norm"),
                                  method<kMixNorm>("mix_norm"), method<kLayerNorm>("layer_norm"), {}};
  static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_graph", nullptr, -1, methods};
  return PyModule_Create(&module);
}
#endif
