// Fills the kernel tables of one instruction set; NORMWISE_ISA names the namespace that they go to.
#pragma once

#include "columns.h"
#include "pools.h"
#include "rows.h"
#include "vectors.h"

namespace normwise {
namespace NORMWISE_ISA {

template <class T> const Kernels<T>& table() {
  static const Kernels<T> kernels{
      row_moments<T>,    row_apply<T>,    row_grad_sums<T>,    row_grad_input<T>,
      column_moments<T>, column_apply<T>, column_grad_sums<T>, column_grad_input<T>,
      vector_norm<T>,    vector_norm_grad<T>,
      pool_groups<T>,    repeat_groups<T>, solve_groups<T>,    channel_affine<T>,
  };
  return kernels;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();
template const Kernels<BFloat16>& table<BFloat16>();
template const Kernels<Half>& table<Half>();

}  // namespace NORMWISE_ISA
}  // namespace normwise
