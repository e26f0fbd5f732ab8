// Element types, and the types that sums over them are kept in.
#pragma once

#include <cstdint>

namespace normwise {

struct BFloat16 { uint16_t bits; };
struct Half { uint16_t bits; };

template <class T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <class T> using acc_t = typename Accumulator<T>::type;

}  // namespace normwise
