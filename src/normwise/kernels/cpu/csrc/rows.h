// Kernels for contiguous cells.
//
// Sums run over blocks short enough for float32 and for the first-level cache; blocks are merged in float64. Rows are summed one
// after the other by the same few instructions: some processors tell streams apart by the instruction that reads, and with a
// copy of the loop for each of several rows they fetched ahead half as fast.
#pragma once

#include "activation.h"

namespace normwise {
namespace {

// A kernel is compiled as one function: what a compiler leaves as a call, and that changes with every line, takes registers
// through memory.
#define NORMWISE_KERNEL __attribute__((flatten))

constexpr int64_t kBlock = 1024;
constexpr int kTries = 3;  // to improve a centre; one has always been enough

// Merges a block's (count, mean, m2) into a running one (Chan, Golub & LeVeque 1979).
inline void merge(double& mean, double& m2, int64_t count, double block_mean, double block_m2, int64_t block_count) {
  if (count == 0) {
    mean = block_mean;
    m2 = block_m2;
    return;
  }
  const double share = static_cast<double>(block_count) / static_cast<double>(count + block_count);
  const double delta = block_mean - mean;
  mean += delta * share;
  m2 += block_m2 + delta * delta * share * static_cast<double>(count);
}

// A rough mean: of eight values at equal distances. Dividing first makes it exact for constant input.
template <class T> inline acc_t<T> mean_of_eight(const T* x, int64_t n, int64_t stride) {
  using A = acc_t<T>;
  const auto eighth = [=](int64_t i) { return A(0.125) * load(x[(i * n >> 3) * stride]); };
  // In pairs: one long chain of additions would take most of a short row's time.
  return ((eighth(0) + eighth(1)) + (eighth(2) + eighth(3))) + ((eighth(4) + eighth(5)) + (eighth(6) + eighth(7)));
}

// A rough mean of a run: of its first lanes, as the sum begins there too. A leap ahead would cost more than a worse guess: the
// processor fetches ahead what is read in order.
template <class T> inline acc_t<T> guess_center(const T* x, int64_t n) {
  using V = Lanes<acc_t<T>>;
  constexpr int W = lane_count<acc_t<T>>;
  return n < W ? mean_of_eight(x, n, 1) : rough_lane_sum(load_as(x, V{}) * (acc_t<T>(1) / W));
}

// Whether the mean lies `offset` from the centre of these sums, which is too far: most of `square` comes from it.
template <class V> inline auto is_poor_center(V offset, V square, double share) { return offset * offset > 0.75 * share * square; }

// Sums about a centre lose precision if it is off by much more than the deviation; it is then moved, to the mean that it
// led to, and the block summed again.
template <class A> inline bool move_poor_center(A& center, double sum, double square, double share) {
  const double offset = sum * share;
  const A better = static_cast<A>(center + offset);
  const bool poor = is_poor_center(offset, square, share) && better != center;
  center = poor ? better : center;
  return poor;
}

// The mean and the sum of squared deviations from it, of sums about a centre.
template <class V> inline Pair<V> moments_of(V center, V sum, V square, double share) {
  const V offset = sum * share;
  return {center + offset, square - offset * sum};
}

// Of a run: vectors whose lanes add up to the sums about a centre.
template <class T> inline auto sums_about(acc_t<T> center, const T* x, int64_t n) {
  return partial_sums(n, [center](auto v) { v -= center; return Pair<decltype(v)>{v, v * v}; }, x);
}

// Sums of `count` cells, each `next` after the one before and its n elements `step` apart, that overflowed: finite values have a
// mean, and squares beyond what their type holds.
template <class T>
__attribute__((noinline)) void mend_overflow(const T* x, int64_t count, int64_t next, int64_t n, int64_t step, double* mean, double* m2) {
  for (int64_t i = 0; i < count; ++i) {
    if (std::isfinite(mean[i]) && !std::isnan(m2[i])) continue;
    const double share = 1.0 / static_cast<double>(n);
    double total = 0;
    for (int64_t j = 0; j < n; ++j) total += share * load(x[i * next + j * step]);
    if (std::isfinite(total)) mean[i] = total, m2[i] = HUGE_VAL;
  }
}
inline bool any_overflow(const double* mean, const double* m2, int64_t count) {
  int lost = 0;
#pragma omp simd reduction(| : lost)
  for (int64_t i = 0; i < count; ++i) lost |= (mean[i] - mean[i] != 0) | (m2[i] != m2[i]);
  return lost != 0;
}

// A block's mean and sum of squared deviations, about a centre that is moved until it serves.
template <class T> inline Pair<double> block_moments(const T* x, int64_t n, acc_t<T> center, int tries = kTries) {
  const double share = 1.0 / static_cast<double>(n);
  auto sums = lane_sum(sums_about(center, x, n));
  for (; tries > 0 && move_poor_center(center, sums.first, sums.second, share); --tries) sums = lane_sum(sums_about(center, x, n));
  return moments_of<double>(center, sums.first, sums.second, share);
}

// Rows of several blocks, or of none.
template <class T> inline void long_row_moments(const T* x, const Runs& runs, double* mean, double* m2) {
  const int64_t n = runs.length;
  for (int64_t i = 0; i < runs.count; ++i) {
    mean[i] = m2[i] = 0;
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const T* p = x + i * n + begin;
      const int64_t m = n - begin < kBlock ? n - begin : kBlock;
      const auto block = block_moments(p, m, begin == 0 ? guess_center(p, m) : static_cast<acc_t<T>>(mean[i]));
      merge(mean[i], m2[i], begin, block.first, block.second, m);
    }
  }
}

// Calls f(first row, count) for as many rows as go together, and at the end for fewer. What follows the sums of a short row takes
// as long as they do, and is done for several at a time: the same for any number, so that results do not depend on it.
template <class F> inline void together(int64_t rows, F f) {
  for (int64_t i = 0; i < rows; i += kTogether) f(i, static_cast<int>(rows - i < kTogether ? rows - i : kTogether));
}

// The sums over lanes of what f gives for each row; 0 for rows beyond `count`.
template <class A, class F> inline Pair<Lanes<double>> sums_together(int count, F f) {
  Lanes<A> first[kTogether], second[kTogether];
  for (int r = 0; r < count; ++r) {
    const auto sums = f(r);
    first[r] = sums.first, second[r] = sums.second;
  }
  for (int r = count; r < kTogether; ++r) first[r] = second[r] = Lanes<A>{};
  return {lane_sums<A>(first), lane_sums<A>(second)};
}

inline void put_together(double* to, int count, Lanes<double> v) {
  if (count == kTogether) store_as(to, v);
  else store_first(to, count, v);
}

// Rows of at most a block.
template <class T> inline void short_row_moments(const T* x, const Runs& runs, double* mean, double* m2) {
  using A = acc_t<T>;
  const int64_t n = runs.length;
  const double share = 1.0 / static_cast<double>(n);
  A guess = guess_center(x, n);
  together(runs.count, [&](int64_t i, int count) {
    const T* rows = x + i * n;
    A centers[kTogether] = {};
    const auto sums = sums_together<A>(count, [&](int r) {
      const T* p = rows + r * n;
      const auto sums = sums_about(centers[r] = guess, p, n);
      // Here, where it is next to be read, and before it is wanted: a guess takes long.
      if (i + r + 1 < runs.count) guess = guess_center(p + n, n);
      return sums;
    });
    Lanes<double> center;
    for (int r = 0; r < kTogether; ++r) center[r] = centers[r];
    const auto moments = moments_of(center, sums.first, sums.second, share);
    put_together(mean + i, count, moments.first);
    put_together(m2 + i, count, moments.second);
    const auto poor = is_poor_center(sums.first * share, sums.second, share) ? Lanes<double>{} + 1 : Lanes<double>{};
    if (lane_sum(poor) != 0)
      for (int r = 0; r < count; ++r)
        if (poor[r] != 0) {
          const auto again = block_moments(rows + r * n, n, static_cast<A>(moments.first[r]), kTries - 1);
          mean[i + r] = again.first, m2[i + r] = again.second;
        }
  });
}

template <class T> NORMWISE_KERNEL void row_moments(const T* x, const Runs& runs, double* mean, double* m2) {
  if (0 < runs.length && runs.length <= kBlock && runs.count > 0) short_row_moments(x, runs, mean, m2);
  else long_row_moments(x, runs, mean, m2);
  if (any_overflow(mean, m2, runs.count)) mend_overflow(x, runs.count, runs.length, runs.length, 1, mean, m2);
}

// to[r, i] = f(from[r, i]..., of[r]...), where f takes registers. Over all rows as one run of memory: whatever a row's length, a
// register is stored where a line of memory begins, and rows have no ends to write apart, but for the first and the last. Where
// a register has elements of two rows, it has the values of both.
template <bool streams, class T, class F, size_t... J, class... From>
inline void map_runs(const Runs& runs, F f, const std::array<const acc_t<T>*, sizeof...(J)>& of, std::index_sequence<J...>, T* to,
                     const From*... from) {
  using A = acc_t<T>;
  constexpr int64_t step = step_size<T>;
  struct Row { Lanes<A> of[sizeof...(J)]; };
  const int64_t n = runs.length;
  const auto row = [&](int64_t r) { return Row{{(Lanes<A>{} + of[J][r])...}}; };
  const auto write_short = [=](const Row& row, int64_t i, int64_t count) {
    map_short(count, [&](auto... v) { return f(v..., row.of[J]...); }, to + i, (from + i)...);
  };
  if (n < step || runs.count == 0) {
    for (int64_t r = 0; r < runs.count; ++r) write_short(row(r), r * n, n);
    return;
  }
  // The second row is for the second half of load_two.
  const auto write = [=](int64_t i, const Row& first, const Row& second) {
    if constexpr (step > lane_count<A>) {
      const auto both = [&](auto... two) { store_two(to + i, f(two.first..., first.of[J]...), f(two.second..., second.of[J]...), streams); };
      both(load_two(from + i)...);
    } else {
      store_as(to + i, f(load_as(from + i, Lanes<A>{})..., first.of[J]...), streams);
    }
  };
  int64_t i = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) / sizeof(T) % step);
  write_short(row(0), 0, i);
  for (int64_t r = 0, end = n;; end += n) {
    const Row now = row(r);
    for (; i + step <= end; i += step) write(i, now, now);
    if (++r == runs.count) return write_short(now, i, end - i);
    if (const int64_t left = end - i; left > 0) {
      constexpr int64_t halves = step / lane_count<A>;
      const Row next = row(r);
      const Row first{{seam<A>(now.of[J], next.of[J], (left + halves - 1) / halves)...}};
      const Row second{{seam<A>(now.of[J], next.of[J], left / halves)...}};
      write(i, first, second);
      i += step;
    }
  }
}
template <class T, class F, size_t n, class... From>
inline void map_runs(const Runs& runs, F f, const std::array<const acc_t<T>*, n>& of, T* to, const From*... from) {
  constexpr std::make_index_sequence<n> values{};
  if (runs.streams) {
    map_runs<true, T>(runs, f, of, values, to, from...);
    finish_streaming();
  } else {
    map_runs<false, T>(runs, f, of, values, to, from...);
  }
}

template <class T>
NORMWISE_KERNEL void row_apply(const T* x, T* y, const Runs& runs, const Affine<acc_t<T>>& affine, const Activation& activation) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    with_affine<T>(affine, runs.count, [&](auto normalized, const auto& of) {
      map_runs<T>(runs, [=](auto... v) { return activate<kind.value>(normalized(v...), slope); }, of, y, x);
    });
  });
}

template <class T>
NORMWISE_KERNEL void row_grad_sums(const T* g, const T* x, const Runs& runs, const acc_t<T>* mean, const Affine<acc_t<T>>& affine,
                                   const Activation& activation, double* s1, double* s2) {
  using A = acc_t<T>;
  const A slope = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    const int64_t n = runs.length;
    // The partial sums of a block of row i.
    const auto block = [&](int64_t i, int64_t begin, int64_t size) {
      const A mu = mean[i], center = affine.center[i], scale = affine.scale[i], shift = affine.shift[i];
      const auto term = [=](auto d, auto v) {
        d = activate_grad<kind.value>(d, (v - center) * scale + shift, slope);
        return Pair<decltype(v)>{d, d * (v - mu)};
      };
      return partial_sums(size, term, g + i * n + begin, x + i * n + begin);
    };
    if (n <= kBlock)
      return together(runs.count, [&](int64_t i, int count) {
        const auto sums = sums_together<A>(count, [&](int r) { return block(i + r, 0, n); });
        put_together(s1 + i, count, sums.first);
        put_together(s2 + i, count, sums.second);
      });
    for (int64_t i = 0; i < runs.count; ++i) {
      s1[i] = s2[i] = 0;
      for (int64_t begin = 0; begin < n; begin += kBlock) {
        const auto sums = lane_sum(block(i, begin, n - begin < kBlock ? n - begin : kBlock));
        s1[i] += sums.first, s2[i] += sums.second;
      }
    }
  });
}

template <class T>
NORMWISE_KERNEL void row_grad_input(const T* g, const T* x, T* dx, const Runs& runs, const Affine<acc_t<T>>& affine,
                                    const Slant<acc_t<T>>& slant, const Activation& activation) {
  using A = acc_t<T>;
  const A leak = A(activation.slope);
  with_activation(activation.kind, [&](auto kind) {
    const auto value = [=](auto d, auto v, auto scale, auto shift, auto slope, auto offset, auto... center) {
      v = (v - ... - center);
      return scale * activate_grad<kind.value>(d, v * scale + shift, leak) + (slope * v + offset);
    };
    with_center(affine.center, runs.count, [&](auto... center) {
      map_runs<T>(runs, value, std::array{affine.scale, affine.shift, slant.slope, slant.offset, center...}, dx, g, x);
    });
  });
}

}  // namespace
}  // namespace normwise
