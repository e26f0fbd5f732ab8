// The kernels for any processor of the architecture; also where the choice between instruction sets is made.
#include <cstdlib>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define NORMWISE_ISA baseline
#define NORMWISE_VECTOR_BYTES 16
#include "table.h"

namespace normwise {

int isa_level() {
  static const int level = [] {
    int best = 0;
#ifdef NORMWISE_X86_DISPATCH
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = 1;
    if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) best = 2;
#endif
    const char* wish = std::getenv("NORMWISE_ISA");
    if (wish && std::strcmp(wish, "baseline") == 0) return 0;
    if (wish && std::strcmp(wish, "avx2") == 0 && best > 1) return 1;
    return best;
  }();
  return level;
}

template <class T> const Kernels<T>& kernels() {
#ifdef NORMWISE_X86_DISPATCH
  static const Kernels<T>& chosen =
      isa_level() == 2 ? avx512::table<T>() : isa_level() == 1 ? avx2::table<T>() : baseline::table<T>();
  return chosen;
#else
  return baseline::table<T>();
#endif
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();
template const Kernels<BFloat16>& kernels<BFloat16>();
template const Kernels<Half>& kernels<Half>();

}  // namespace normwise
