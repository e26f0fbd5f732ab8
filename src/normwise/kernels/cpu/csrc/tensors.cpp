#include "tensors.h"

#include "convert.h"

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.10 has it by another name
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif

namespace normwise {
namespace {

using Sizes = std::vector<int64_t>;

Sizes copy_of(torch::headeronly::IntHeaderOnlyArrayRef values) { return Sizes(values.begin(), values.end()); }

// The spatial axes, outermost first: by their strides, as their order in a cell does not matter.
Sizes spatial_order(const Sizes& sizes, const Sizes& strides) {
  Sizes order;
  for (size_t axis = 2; axis < sizes.size(); ++axis) order.push_back(static_cast<int64_t>(axis));
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  return order;
}

// Dense strides with the axes in memory order (N, C, spatial) or (N, spatial, C).
Sizes dense_strides(const Sizes& sizes, bool columns, Sizes order = {}) {
  if (order.empty())
    for (size_t axis = 2; axis < sizes.size(); ++axis) order.push_back(static_cast<int64_t>(axis));
  Sizes strides(sizes.size());
  int64_t next = 1;
  auto place = [&](size_t axis) {
    strides[axis] = next;
    next *= std::max<int64_t>(1, sizes[axis]);
  };
  if (columns && sizes.size() > 1) place(1);
  for (size_t i = order.size(); i-- > 0;) place(order[i]);
  if (!columns && sizes.size() > 1) place(1);
  if (!sizes.empty()) place(0);
  return strides;
}

// Whether strides mean the same memory; those of axes of size 1 say nothing.
bool same_memory(const Sizes& sizes, const Sizes& a, const Sizes& b) {
  for (size_t axis = 0; axis < sizes.size(); ++axis)
    if (sizes[axis] != 1 && a[axis] != b[axis]) return false;
  return true;
}

// Whether channels vary fastest among the axes that make a sample. fakes.py's _channels_last says the same for fakes.
bool channels_vary_fastest(const Sizes& sizes, const Sizes& strides) {
  for (size_t axis = 2; axis < sizes.size(); ++axis)
    if (sizes[axis] > 1 && strides[axis] <= strides[1]) return false;
  return sizes[1] > 1;
}

Tensor empty_strided(const Sizes& sizes, const Sizes& strides, ScalarType dtype) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor copied(const Tensor& t, const Sizes& sizes, const Sizes& strides, ScalarType dtype) {
  Tensor result = empty_strided(sizes, strides, dtype);
  torch::stable::copy_(result, t);
  return result;
}

// Of a contiguous tensor. Parameters are few values: having torch convert them would take a small tensor's time.
template <class A> std::vector<A> converted(const Tensor& t) {
  std::vector<A> result(t.numel());
  with_dtype(t.scalar_type(), [&](auto* type) {
    const auto* from = const_data<std::remove_pointer_t<decltype(type)>>(t);
    for (size_t i = 0; i < result.size(); ++i) result[i] = static_cast<A>(load(from[i]));
  });
  return result;
}

}  // namespace

Tensor empty(const Sizes& sizes, ScalarType dtype) { return empty_strided(sizes, dense_strides(sizes, false), dtype); }

Tensor rounded(const Sizes& sizes, ScalarType dtype, const double* values) {
  Tensor result = empty(sizes, dtype);
  with_dtype(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    T* to = data<T>(result);
    for (int64_t i = 0; i < result.numel(); ++i) store(to + i, static_cast<acc_t<T>>(values[i]));
  });
  return result;
}

std::vector<double> values(const Tensor& t) {
  return converted<double>(t.is_contiguous() ? t : copied(t, copy_of(t.sizes()), dense_strides(copy_of(t.sizes()), false), t.scalar_type()));
}

Cells::Cells(const Tensor& x) : tensor(x), M(1) {
  const Sizes sizes = copy_of(x.sizes()), strides = copy_of(x.strides());
  STD_TORCH_CHECK(sizes.size() >= 2, "normwise: expected (N, C, ...), got ", sizes.size(), " dimensions");
  N = sizes[0];
  C = sizes[1];
  for (size_t axis = 2; axis < sizes.size(); ++axis) M *= sizes[axis];
  columns = channels_vary_fastest(sizes, strides);
  if (!same_memory(sizes, strides, dense_strides(sizes, columns, spatial_order(sizes, strides))))
    tensor = copied(x, sizes, dense_strides(sizes, columns), x.scalar_type());
}

Cells::Cells(const Tensor& x, int64_t axes) : tensor(x), N(1), C(1), M(1), columns(false) {
  const Sizes sizes = copy_of(x.sizes());
  const int64_t dims = static_cast<int64_t>(sizes.size());
  STD_TORCH_CHECK(0 < axes && axes <= dims, "normwise: cannot normalize over the last ", axes, " of ", dims, " axes");
  for (int64_t axis = 0; axis < dims; ++axis) (axis < dims - axes ? N : C) *= sizes[axis];
  if (!x.is_contiguous()) tensor = copied(x, sizes, dense_strides(sizes, false), x.scalar_type());
}

void Cells::join_samples() {
  // Samples of channels-last memory follow each other without a seam, so a piece may span some: as many as give every
  // thread a few pieces, and none so short that its sums cost more than its elements.
  constexpr int64_t most = 1024, least = 256;
  columns = columns || (M == 1 && C > 1);
  if (columns || M == 1) {
    for (int64_t k = 2; k <= N && N * M / pieces > most && N * M / k >= least; ++k)
      if (N % k == 0) pieces = k;
  } else {
    pieces = std::max<int64_t>(1, N);
  }
  M *= N;
  N = std::min<int64_t>(1, N);
}

Tensor Cells::match(const Tensor& g) const {
  const Sizes sizes = copy_of(tensor.sizes()), strides = copy_of(tensor.strides());
  STD_TORCH_CHECK(copy_of(g.sizes()) == sizes, "normwise: the gradient and the input differ in shape");
  if (g.scalar_type() == tensor.scalar_type() && same_memory(sizes, copy_of(g.strides()), strides)) return g;
  return copied(g, sizes, strides, tensor.scalar_type());
}

Tensor Cells::empty_like() const {
  return empty_strided(copy_of(tensor.sizes()), copy_of(tensor.strides()), tensor.scalar_type());
}

template <class A> PerCell<A>::PerCell(const Tensor& t, const Cells& x) : tensor(t) {
  const Sizes sizes = copy_of(t.sizes());
  const int64_t channels = sizes.empty() ? 0 : sizes.back(), samples = sizes.size() == 2 ? sizes[0] : 1;
  STD_TORCH_CHECK((sizes.size() == 1 || sizes.size() == 2) && (samples == 1 || samples == x.N) &&
                      (channels == 1 || channels == x.C),
                  "normwise: expected one value per cell, broadcastable to (", x.N, ", ", x.C, ")");
  const ScalarType dtype = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;
  const bool usable = t.scalar_type() == dtype && channels == x.C && (x.C == 1 || t.strides().back() == 1);
  stride = samples == 1 ? 0 : usable ? tensor.stride(0) : x.C;
  if (!usable && channels == x.C && t.is_contiguous()) {
    converted = normwise::converted<A>(t);
    data = converted.data();
    return;
  }
  if (!usable) tensor = copied(t, {samples, x.C}, {x.C, 1}, dtype);
  data = const_data<A>(tensor);
}

void check_channels(const Cells& x, const MaybeTensor& t) {
  STD_TORCH_CHECK(!t || (t->numel() == x.C && t->dim() > 0 && t->size(t->dim() - 1) == x.C), "normwise: expected ", x.C,
                  " values, one a channel");
}

void check_parameter(const Cells& x, const MaybeTensor& t) {
  if (!t) return;
  STD_TORCH_CHECK(goes_with(x, t->scalar_type()), "normwise: the parameters are of a type that does not go with the input's");
  if (is_per_sample(x, t) && t->size(1) == x.C) return;
  check_channels(x, t);
}

template struct PerCell<float>;
template struct PerCell<double>;

}  // namespace normwise
