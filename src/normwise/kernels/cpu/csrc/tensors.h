// From torch's tensors to plain pointers: layouts, per-cell parameters, allocation.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "kernels.h"

namespace normwise {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline int64_t thread_count() { return static_cast<int64_t>(torch::stable::get_num_threads()); }

// How many elements are worth a thread.
constexpr int64_t kGrain = 32768;

inline int64_t grain(int64_t elements_per_task) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_task)); }

// parallel_for that skips torch's pool, and the call into it, for work that one thread does best.
template <class F> void parallel(int64_t tasks, int64_t elements_per_task, const F& f) {
  if (tasks <= grain(elements_per_task)) {
    if (tasks > 0) f(int64_t{0}, tasks);
  } else {
    torch::stable::parallel_for(0, tasks, grain(elements_per_task), f);
  }
}

// x in one of the two layouts that the kernels know, copied only if it is in neither.
struct Cells {
  Tensor tensor;
  int64_t N, C, M;
  bool columns;        // channels-last
  int64_t pieces = 1;  // of equal size, that each cell lies in: (N, pieces, C, M / pieces) or (N, pieces, M / pieces, C)

  explicit Cells(const Tensor& x);
  // With the elements of the last axes as channels, and no spatial axes.
  Cells(const Tensor& x, int64_t axes);
  // Makes all samples one, whose cells hold the elements of theirs.
  void join_samples();
  // g in x's layout and type.
  Tensor match(const Tensor& g) const;
  Tensor empty_like() const;
  int64_t numel() const { return N * C * M; }
};

Tensor empty(const std::vector<int64_t>& sizes, ScalarType dtype);

inline ScalarType acc_type(ScalarType dtype) { return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

// A new tensor of these values.
Tensor rounded(const std::vector<int64_t>& sizes, ScalarType dtype, const double* values);

// The elements of any tensor, in order.
std::vector<double> values(const Tensor& t);

// A tensor broadcastable to (N, C), or (C,), as rows of C contiguous values; a sample's row is `stride` after the one before, which
// is 0 where samples share one.
template <class A> struct PerCell {
  Tensor tensor;
  std::vector<A> converted;  // where they are of another type
  const A* data;
  int64_t stride;

  PerCell(const Tensor& t, const Cells& x);
  const A* sample(int64_t n) const { return data + n * stride; }
};

// Memory that nobody has written to yet.
template <class A> class Buffer {
  std::unique_ptr<A[]> memory;

 public:
  explicit Buffer(int64_t count) : memory(new A[count]) {}
  A* data() const { return memory.get(); }
  A& operator[](int64_t i) const { return memory[i]; }
};

// Whether parameters and averages of a type go with x: of its own, or of the one it is summed in.
inline bool goes_with(const Cells& x, ScalarType dtype) {
  return dtype == x.tensor.scalar_type() || dtype == acc_type(x.tensor.scalar_type());
}

// That a tensor, if there is one, has a value a channel; or, of a parameter, one a cell, in a type that goes with x.
void check_channels(const Cells& x, const MaybeTensor& t);
void check_parameter(const Cells& x, const MaybeTensor& t);
inline bool is_per_sample(const Cells& x, const MaybeTensor& t) { return t && t->dim() == 2 && t->size(0) == x.N; }

// The learned affine around a normalization; 1 and 0 where there is none.
template <class A> struct Parameters {
  std::optional<PerCell<A>> weight, bias;
  std::vector<A> ones, zeros;

  Parameters(const Cells& x, const MaybeTensor& w, const MaybeTensor& b) {
    check_parameter(x, w);
    check_parameter(x, b);
    if (w) weight.emplace(*w, x);
    else ones.assign(x.C, A(1));
    if (b) bias.emplace(*b, x);
    else zeros.assign(x.C, A(0));
  }
  bool per_sample() const { return (weight && weight->stride) || (bias && bias->stride); }
  const A* weights(int64_t n) const { return weight ? weight->sample(n) : ones.data(); }
  const A* biases(int64_t n) const { return bias ? bias->sample(n) : zeros.data(); }
};

// Calls f with a null pointer of the element type.
template <class F> auto with_dtype(ScalarType dtype, F f) {
  switch (dtype) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<BFloat16*>(nullptr));
    case ScalarType::Half: return f(static_cast<Half*>(nullptr));
    default: STD_TORCH_CHECK(false, "normwise: expected float32, float64, bfloat16 or float16");
  }
}

template <class T> T* data(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }
template <class T> const T* const_data(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }

}  // namespace normwise
