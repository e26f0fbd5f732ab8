// The loops that touch every element, one table per element type and instruction set.
//
// A cell is one (sample, channel). Memory comes in two layouts:
//   rows     cells are contiguous runs of M values               (N, C, M): torch's contiguous format
//   columns  channels are contiguous, a cell is a strided column (N, M, C): channels-last
#pragma once

#include "dtypes.h"

namespace normwise {

enum class Act : int64_t { none = 0, relu = 1, leaky_relu = 2, silu = 3 };  // the codes of native.py's ACTIVATIONS

struct Activation {
  Act kind;
  double slope;  // of leaky_relu
};

// y = act((x - center) * (scale + rest) + shift); pointers to one value a channel. `rest` is what rounding took from scale, null
// where nobody knows it; only what writes float32 output reads it, as nowhere else would it show.
template <class A> struct Affine {
  const A *center, *scale, *shift, *rest;
  Affine operator+(int64_t c) const { return {center + c, scale + c, shift + c, rest ? rest + c : nullptr}; }
};

// dx = scale * g' + slope * (x - center) + offset; pointers to one value a channel.
template <class A> struct Slant {
  const A *slope, *offset;
  Slant operator+(int64_t c) const { return {slope + c, offset + c}; }
};

// What is learned, and what normalizes, channel by channel.
template <class A> struct Learned { const A *weight, *bias; };
template <class A> struct ChannelAffine {
  A *center, *scale, *shift, *rest;
  static constexpr int64_t kArrays = 4;  // in memory for so many times `count` values, one after the other
  ChannelAffine(A* memory, int64_t count) : center(memory), scale(center + count), shift(scale + count), rest(shift + count) {}
  ChannelAffine operator+(int64_t c) const {
    ChannelAffine moved = *this;
    for (A** p : {&moved.center, &moved.scale, &moved.shift, &moved.rest}) *p += c;
    return moved;
  }
  operator Affine<A>() const { return {center, scale, shift, rest}; }
};

// Neighbouring groups of a sample: how many, the channels of each and its elements, and the equal parts of it whose moments
// are known.
struct Pools {
  int64_t count, channels, parts;
  double size, eps;
};

// A block of memory in the rows layout: `count` cells of `length` values, one after the other.
struct Runs {
  int64_t count, length;
  bool streams = false;  // whether what is written goes past the caches
};

// A block of memory in the columns layout: `rows` rows of `width` channels, `stride` elements from row to row.
struct Tile {
  int64_t rows, width, stride;
  bool streams = false;
};

// A block of memory (samples, groups, length): each group of a sample normalized by itself, about its mean or about 0. What is
// learned has a value for each element of a sample.
struct Vectors {
  int64_t samples, groups, length;
  double eps;
  bool centered;
  bool streams = false;
};

constexpr int64_t kTileWidth = 2048;  // widest part of a row that column kernels take at a time; those that sum get no wider tile

// By reference: a copy is read in other pieces than it was written, and that waits until all stores before are done.
template <class T> struct Kernels {
  using A = acc_t<T>;
  // Of every cell: the mean, and the sum of squared deviations.
  void (*row_moments)(const T* x, const Runs&, double* mean, double* m2);
  void (*row_apply)(const T* x, T* y, const Runs&, const Affine<A>&, const Activation&);
  // S1 = sum of g', S2 = sum of g' * (x - mean).
  void (*row_grad_sums)(const T* g, const T* x, const Runs&, const A* mean, const Affine<A>&, const Activation&, double* s1, double* s2);
  void (*row_grad_input)(const T* g, const T* x, T* dx, const Runs&, const Affine<A>&, const Slant<A>&, const Activation&);
  // The same in the other layout.
  void (*column_moments)(const T* x, const Tile&, double* mean, double* m2);
  void (*column_apply)(const T* x, T* y, const Tile&, const Affine<A>&, const Activation&);
  void (*column_grad_sums)(const T* g, const T* x, const Tile&, const A* mean, const Affine<A>&, const Activation&, double* s1, double* s2);
  void (*column_grad_input)(const T* g, const T* x, T* dx, const Tile&, const Affine<A>&, const Slant<A>&, const Activation&);
  // Whole vectors: mean and var are of (samples, groups); the gradients of what is learned are added to.
  void (*vector_norm)(const T* x, T* y, const Vectors&, const Learned<A>&, const Activation&, double* mean, double* var);
  void (*vector_norm_grad)(const T* g, const T* x, T* dx, const Vectors&, const Learned<A>&, const Activation&, const double* mean,
                           const double* var, A* grad_weight, A* grad_bias);
  // Between the others, on values of channels: see pools.h.
  void (*pool_groups)(const Pools&, const double* mu, const double* m2, const Learned<A>&, double* mean, double* var, const ChannelAffine<A>&);
  void (*repeat_groups)(const Pools&, const double* mean, const double* var, const Learned<A>&, const ChannelAffine<A>&, A* about);
  void (*solve_groups)(const Pools&, const double* mean, const double* var, const A* center, const A* weight, const double* s1, double* s2,
                       A* slope, A* offset);
  void (*channel_affine)(int64_t count, const double* mean, const double* var, double eps, const Learned<A>&, const ChannelAffine<A>&);
};

// The table for the processor that this runs on; the environment variable NORMWISE_ISA may ask for less.
template <class T> const Kernels<T>& kernels();

// 0 baseline, 1 AVX2, 2 AVX-512.
int isa_level();

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define NORMWISE_X86_DISPATCH 1
#endif

namespace baseline { template <class T> const Kernels<T>& table(); }
namespace avx2 { template <class T> const Kernels<T>& table(); }
namespace avx512 { template <class T> const Kernels<T>& table(); }

}  // namespace normwise
