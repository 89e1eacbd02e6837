// Products of bfloat16 matrices a few dozen wide, for processors with AVX512-BF16: what attention.cpp is made of. They
// are smaller than what a library call pays off for. Sums are float32.
//
// A "pair" is two neighbouring bfloat16 of the axis that a product sums over, in one 32-bit word: that is what the
// processor multiplies.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

constexpr int64_t LANES = 16;  // float32 of a register
constexpr int64_t PANEL = 64;  // columns of a product that are computed together
constexpr int64_t TILE = 6;    // rows of it; 6 x 64 sums fill the registers

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Rows of heads somewhere in memory; strides in bytes.
struct Heads {
  char* data;
  int64_t head, token;
  char* row(int64_t h, int64_t t) const { return data + h * head + t * token; }
};

struct Left {  // pairs of row i at step s: data + i * row + s * step, in bytes
  const char* data;
  int64_t row, step;
};

struct Right {  // pairs of PANEL columns at step s: data + s * step, in pairs
  const uint32_t* data;
  int64_t step;
};

template <int ROWS, int VECTORS>
inline void multiply_tile(Left a, Right b, float* c, int64_t width, int64_t steps, bool adds) {
  __m512 sums[ROWS][VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j)
      sums[i][j] = adds ? _mm512_loadu_ps(c + i * width + j * LANES) : _mm512_setzero_ps();
  for (int64_t s = 0; s < steps; ++s) {
    __m512bh right[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) right[j] = (__m512bh)_mm512_loadu_si512(b.data + s * b.step + j * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < ROWS; ++i) {
      int32_t pair;
      std::memcpy(&pair, a.data + i * a.row + s * a.step, 4);
      __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) sums[i][j] = _mm512_dpbf16_ps(sums[i][j], left, right[j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) _mm512_storeu_ps(c + i * width + j * LANES, sums[i][j]);
}

template <int VECTORS>
void multiply_strip(Left a, Right b, float* c, int64_t width, int64_t rows, int64_t steps, bool adds) {
  for (; rows >= TILE; rows -= TILE, a.data += TILE * a.row, c += TILE * width)
    multiply_tile<TILE, VECTORS>(a, b, c, width, steps, adds);
  if (rows & 4) {
    multiply_tile<4, VECTORS>(a, b, c, width, steps, adds);
    a.data += 4 * a.row, c += 4 * width;
  }
  if (rows & 2) {
    multiply_tile<2, VECTORS>(a, b, c, width, steps, adds);
    a.data += 2 * a.row, c += 2 * width;
  }
  if (rows & 1) multiply_tile<1, VECTORS>(a, b, c, width, steps, adds);
}

// c[rows, columns of one panel] = a b, or c + a b; columns are a multiple of LANES.
void multiply(Left a, Right b, float* c, int64_t width, int64_t rows, int64_t columns, int64_t steps, bool adds) {
  switch (columns / LANES) {
    case 1: return multiply_strip<1>(a, b, c, width, rows, steps, adds);
    case 2: return multiply_strip<2>(a, b, c, width, rows, steps, adds);
    case 3: return multiply_strip<3>(a, b, c, width, rows, steps, adds);
    default: return multiply_strip<4>(a, b, c, width, rows, steps, adds);
  }
}

// c[rows, size] = a b, where b has all `size` columns side by side.
void multiply_wide(Left a, const uint32_t* b, float* c, int64_t rows, int64_t size, int64_t steps, bool adds) {
  for (int64_t j = 0; j < size; j += PANEL)
    multiply(a, {b + j, size}, c + j, size, rows, std::min(PANEL, size - j), steps, adds);
}

// c[rows, begin:end] = a b, where b is panels of columns; begin and end are multiples of LANES.
void multiply_panels(Left a, const uint32_t* b, float* c, int64_t width, int64_t rows, int64_t begin, int64_t end,
                     int64_t steps) {
  for (int64_t j = begin; j < end;) {
    int64_t inside = j % PANEL, columns = std::min(PANEL - inside, end - j);
    multiply(a, {b + (j - inside) * steps + inside, PANEL}, c + j, width, rows, columns, steps, false);
    j += columns;
  }
}

// ---- laying operands out -------------------------------------------------------------------------------------------

// Rows of a head become columns: panels of [size / 2, PANEL] pairs, zeros behind the last one.
void pack_columns(const Heads& from, int64_t h, int64_t first, int64_t num, int64_t size, uint32_t* to) {
  for (int64_t j = 0; j < round_up(num, PANEL); ++j) {
    uint32_t* place = to + j / PANEL * PANEL * (size / 2) + j % PANEL;
    const char* row = j < num ? from.row(h, first + j) : nullptr;
    for (int64_t s = 0; s < size / 2; ++s) {
      uint32_t pair = 0;
      if (row) std::memcpy(&pair, row + 4 * s, 4);
      place[s * PANEL] = pair;
    }
  }
}

inline __m512i widen(const char* row) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)row)); }

// Two rows each become one of pairs: [padded / 2, size], zeros behind the last row.
void pack_rows(const Heads& from, int64_t h, int64_t first, int64_t num, int64_t padded, int64_t size, uint32_t* to) {
  for (int64_t i = 0; i < padded; i += 2, to += size) {
    const char* low = i < num ? from.row(h, first + i) : nullptr;
    const char* high = i + 1 < num ? from.row(h, first + i + 1) : nullptr;
    for (int64_t d = 0; d < size; d += LANES) {
      __m512i pairs = low ? widen(low + 2 * d) : _mm512_setzero_si512();
      if (high) pairs = _mm512_or_si512(pairs, _mm512_slli_epi32(widen(high + 2 * d), 16));
      _mm512_storeu_si512(to + d, pairs);
    }
  }
}

inline __m256i narrow(__m512 wide) { return (__m256i)_mm512_cvtneps_pbh(wide); }

// Rows of sums become rows of a head, each times a factor.
void write_rows(const float* from, int64_t rows, int64_t size, const float* factors, float factor, const Heads& to,
                int64_t h, int64_t first) {
  for (int64_t i = 0; i < rows; ++i) {
    __m512 by = _mm512_set1_ps(factors ? factors[i] * factor : factor);
    for (int64_t d = 0; d < size; d += LANES)
      _mm256_storeu_si256((__m256i*)(to.row(h, first + i) + 2 * d),
                          narrow(_mm512_mul_ps(_mm512_loadu_ps(from + i * size + d), by)));
  }
}

}  // namespace
