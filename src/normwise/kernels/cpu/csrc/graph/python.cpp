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

// Whether calls meet autograd and nobody else on their way to a kernel: no transform, tracer or profiler.
bool is_ordinary(const c10::impl::LocalDispatchKeySet& here) {
  const bool below_autograd = here.excluded_.has(c10::DispatchKey::AutogradFunctionality);
  const c10::DispatchKeySet usual({c10::DispatchKey::BackendSelect, c10::DispatchKey::ADInplaceOrView});
  return (here.included_ - usual).empty() && !(below_autograd && at::GradMode::is_enabled()) && !at::hasCallbacks() &&
         !at::impl::torch_function_mode_enabled();
}

// Whether it is the object of a plain CPU tensor, without a tangent and not under autocast.
bool is_ordinary(PyObject* object, const c10::impl::LocalDispatchKeySet& here) {
  if (!THPVariable_CheckExact(object)) return false;
  const at::Tensor& t = THPVariable_Unpack(object);
  const auto keys = t.key_set() - here.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  return keys.highestPriorityTypeId() == c10::DispatchKey::CPU && !torch::autograd::isFwGradDefined(t);
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

// Python's API tells of an error by a value that may also be meant.
template <class V> V checked(V value) {
  if (value == static_cast<V>(-1) && PyErr_Occurred()) throw python_error();
  return value;
}

int64_t integer(PyObject* object) { return checked(PyLong_AsLongLong(object)); }

c10::List<int64_t> integers(PyObject* tuple) {
  TORCH_CHECK_TYPE(PyTuple_Check(tuple), "expected a tuple of integers");
  c10::List<int64_t> result;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i) result.push_back(integer(PyTuple_GET_ITEM(tuple, i)));
  return result;
}

c10::IValue value_of(PyObject* object, c10::TypeKind kind) {
  if (object == Py_None) return {};
  switch (kind) {
    case c10::TypeKind::TensorType: return THPVariable_Unpack(object);
    case c10::TypeKind::FloatType: return checked(PyFloat_AsDouble(object));
    case c10::TypeKind::IntType: return integer(object);
    case c10::TypeKind::BoolType: return checked(PyObject_IsTrue(object)) == 1;
    default: return integers(object);
  }
}

// Whether a tensor is of x's type, or of the one in which x is summed.
bool goes_with(const at::Tensor& x, const at::Tensor& t) {
  const auto summed = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return t.scalar_type() == x.scalar_type() || t.scalar_type() == summed;
}

// What a kernel asks of its arguments, before it has changed anything: what does not fit is left to those who have words for it.
struct Fits {
  const Stack& call;
  const at::Tensor& x;
  int64_t N = 0, C = 0;
  bool so = true;

  explicit Fits(const Stack& call) : call(call), x(call.front().toTensor()) {
    const auto dtype = x.scalar_type();
    so = (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf) && x.numel() > 0;
  }
  void cells() {
    if ((so = so && x.dim() >= 2)) N = x.size(0), C = x.size(1);
  }
  // With less behind it than two elements a statistic has no deviation.
  void statistics(int64_t count) { so = so && x.numel() >= 2 * count; }
  void groups(int64_t G) { so = so && G >= 0 && (G == 0 || C % G == 0); }
  void channels(size_t place) {
    if (!so || call[place].isNone()) return;
    const at::Tensor& t = call[place].toTensor();
    so = t.numel() == C && t.dim() > 0 && t.size(-1) == C;
  }
  void parameter(size_t place) {
    if (!so || call[place].isNone()) return;
    const at::Tensor& t = call[place].toTensor();
    so = goes_with(x, t);
    if (t.dim() != 2 || t.size(0) != N || t.size(1) != C) channels(place);
  }
  void averages(size_t mean, size_t var) {
    for (const size_t place : {mean, var}) {
      channels(place);
      if (so && !call[place].isNone()) so = call[place].toTensor().is_contiguous() && goes_with(x, call[place].toTensor());
    }
    so = so && call[mean].isNone() == call[var].isNone();
    if (so && !call[mean].isNone()) so = call[mean].toTensor().scalar_type() == call[var].toTensor().scalar_type();
  }
  void counter(size_t place) {
    if (so && !call[place].isNone()) so = call[place].toTensor().scalar_type() == at::kLong && call[place].toTensor().numel() == 1;
  }
  void shares(size_t mean, size_t var, int64_t members) {
    so = so && call[mean].isNone() == call[var].isNone();
    if (!so || call[mean].isNone()) return;
    for (const size_t place : {mean, var}) so = so && call[place].toTensor().dim() == 1 && call[place].toTensor().numel() == members;
  }
  void last_axes(size_t place, int64_t axes) {
    if (!so || call[place].isNone()) return;
    const at::Tensor& t = call[place].toTensor();
    so = goes_with(x, t) && t.sizes() == x.sizes().slice(x.dim() - axes);
  }
};

template <Which which> bool fits(const Stack& call) {
  Fits f(call);
  if constexpr (which == kLayerNorm) {
    const int64_t axes = call[1].toInt();
    f.so = f.so && 0 < axes && axes <= f.x.dim();
    f.last_axes(2, axes), f.last_axes(3, axes);
    return f.so;
  }
  f.cells();
  if constexpr (which == kSampleNorm) {
    const int64_t G = call[1].toInt();
    f.so = f.so && G > 0;
    f.groups(G), f.statistics(f.N * G), f.parameter(2), f.parameter(3);
  } else if constexpr (which == kBatchNorm) {
    const bool training = call[4].toBool();
    f.so = f.so && (training || !call[5].isNone());
    f.statistics(training ? f.C : 0), f.parameter(1), f.parameter(2), f.averages(5, 6), f.counter(7), f.counter(8);
  } else if constexpr (which == kMixNorm) {
    const auto pools = call[6].toIntVector();
    for (const int64_t G : pools) f.groups(G);
    const int64_t lone = pools.size() != 1 ? f.N * f.C : pools[0] ? f.N * pools[0] : call[8].isNone() ? f.C : 0;
    f.so = f.so && !pools.empty();
    f.statistics(lone), f.parameter(1), f.parameter(2), f.shares(3, 4, static_cast<int64_t>(pools.size()));
    f.channels(8), f.channels(9), f.averages(10, 11), f.counter(12), f.counter(13);
  }
  return f.so;
}

// None where the call is out of the ordinary, or where the kernel does not take what it is given.
template <Which which> PyObject* normalize(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static const std::vector<c10::TypeKind> kinds = argument_types(pair(which).forward.schema());
  TORCH_CHECK_TYPE(static_cast<size_t>(count) == kinds.size(), "expected ", kinds.size(), " arguments, got ", count);
  const auto here = c10::impl::tls_local_dispatch_key_set();
  if (!is_ordinary(here)) Py_RETURN_NONE;
  Stack stack;
  stack.reserve(kinds.size());
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (kinds[i] == c10::TypeKind::TensorType && args[i] != Py_None && !is_ordinary(args[i], here)) Py_RETURN_NONE;
    stack.push_back(value_of(args[i], kinds[i]));
  }
  if (!stack.front().isTensor() || !fits<which>(stack)) Py_RETURN_NONE;
  const at::Tensor& x = stack.front().toTensor();
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
