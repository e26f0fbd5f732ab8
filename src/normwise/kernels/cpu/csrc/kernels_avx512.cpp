// The kernels compiled for AVX-512. Standard headers come first: they must not be compiled for it.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"

#ifdef NORMWISE_X86_DISPATCH
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif
#define NORMWISE_ISA avx512
#define NORMWISE_VECTOR_BYTES 64
#include "table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
