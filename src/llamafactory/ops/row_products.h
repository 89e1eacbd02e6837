// Products of a weight matrix with a few rows: what writing one token of several answers at once consists of.
// Every number is summed in one fixed order, whatever the number of rows, so a row's result does not depend on the
// others. Shapes: M rows, K width of the rows, N rows of the weight.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#include "lanes.h"

namespace {

constexpr int64_t TILE = 4;  // rows of the weight, and of the input, that are multiplied in registers together

// lane i of the result = the sum of the lanes of v[i].
inline Lanes add_across(const Lanes (&v)[LANES]) {
  Lanes a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = __builtin_shufflevector(v[2 * i], v[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           __builtin_shufflevector(v[2 * i], v[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; ++i)
    b[i] = __builtin_shufflevector(a[2 * i], a[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           __builtin_shufflevector(a[2 * i], a[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  for (int i = 0; i < 2; ++i)
    c[i] = __builtin_shufflevector(b[2 * i], b[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           __builtin_shufflevector(b[2 * i], b[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  return __builtin_shufflevector(c[0], c[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(c[0], c[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// out[m * TILE + n] = w row n . x row m; both have K numbers, a multiple of 32.
template <int ROWS, int COLUMNS, typename T>
inline void multiply_tile(const T* w, const T* x, int64_t k, float* out) {
  Lanes sums[LANES] = {};
#ifdef __AVX512BF16__
  if constexpr (sizeof(T) == 2) {
    for (int64_t i = 0; i < k; i += 32) {
      __m512bh right[COLUMNS];
#pragma GCC unroll 4
      for (int n = 0; n < COLUMNS; ++n) right[n] = (__m512bh)_mm512_loadu_si512(w + n * k + i);
#pragma GCC unroll 4
      for (int m = 0; m < ROWS; ++m) {
        const __m512bh left = (__m512bh)_mm512_loadu_si512(x + m * k + i);
#pragma GCC unroll 4
        for (int n = 0; n < COLUMNS; ++n)
          sums[m * TILE + n] = (Lanes)_mm512_dpbf16_ps((__m512)sums[m * TILE + n], left, right[n]);
      }
    }
    const Lanes all = add_across(sums);
    std::memcpy(out, &all, sizeof(all));
    return;
  }
#endif
  for (int64_t i = 0; i < k; i += LANES) {
    Lanes right[COLUMNS];
#pragma GCC unroll 4
    for (int n = 0; n < COLUMNS; ++n) right[n] = load_lanes(w + n * k + i);
#pragma GCC unroll 4
    for (int m = 0; m < ROWS; ++m) {
      const Lanes left = load_lanes(x + m * k + i);
#pragma GCC unroll 4
      for (int n = 0; n < COLUMNS; ++n) sums[m * TILE + n] += left * right[n];
    }
  }
  const Lanes all = add_across(sums);
  std::memcpy(out, &all, sizeof(all));
}

// All rows against COLUMNS rows of the weight; take(m, n, value) gets every number.
template <int COLUMNS, typename T, typename Take>
inline void multiply_strip(const T* w, const T* x, int64_t rows, int64_t k, Take take) {
  float out[LANES];
  for (int64_t m = 0; m < rows;) {
    const int64_t left = rows - m, size = left >= 4 ? 4 : left >= 2 ? 2 : 1;
    if (size == 4) multiply_tile<4, COLUMNS>(w, x + m * k, k, out);
    if (size == 2) multiply_tile<2, COLUMNS>(w, x + m * k, k, out);
    if (size == 1) multiply_tile<1, COLUMNS>(w, x + m * k, k, out);
    for (int64_t i = 0; i < size; ++i)
      for (int64_t n = 0; n < COLUMNS; ++n) take(m + i, n, out[i * TILE + n]);
    m += size;
  }
}

// Which part of N numbers a thread works on.
struct Part {
  int64_t thread, threads;
  int64_t begin(int64_t n) const { return (n / TILE * thread / threads) * TILE; }
  int64_t end(int64_t n) const { return thread + 1 == threads ? n : (n / TILE * (thread + 1) / threads) * TILE; }
};

// x [M, K] times w [N, K] transposed, a thread's part of it.
template <typename T, typename Take>
void multiply(const T* w, const T* x, int64_t rows, int64_t k, int64_t n, Part part, Take take) {
  int64_t i = part.begin(n);
  for (const int64_t end = part.end(n); i < end; i += TILE) {
    if (end - i >= TILE) {
      multiply_strip<TILE>(w + i * k, x, rows, k, [&](int64_t m, int64_t j, float sum) { take(m, i + j, sum); });
    } else {
      for (; i < end; ++i)
        multiply_strip<1>(w + i * k, x, rows, k, [&](int64_t m, int64_t, float sum) { take(m, i, sum); });
    }
  }
}

}  // namespace
