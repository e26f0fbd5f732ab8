// The kernels compiled for AVX2. Standard headers come first: they must not be compiled for it.
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
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define NORMWISE_ISA avx2
#define NORMWISE_VECTOR_BYTES 32
#include "table.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
