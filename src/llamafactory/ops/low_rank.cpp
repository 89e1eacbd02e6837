// Products of bfloat16 matrices one side of which is a few dozen wide (the rank of an adapter), for processors with
// AVX512-BF16. They are bound by reading the long matrix, which a library's product does at a fraction of the speed.
// Sums are float32. Built by native.py, called by low_rank.py.
//
// Shapes: N tokens, W width of the long matrix (a multiple of 32), R rank (even).

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <vector>

#include "bf16_products.h"
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
static int omp_get_thread_num() { return 0; }
static int omp_get_num_threads() { return 1; }
#endif

namespace {

constexpr int64_t RANKS = 8;   // that are computed together
constexpr int64_t SIDE = 4;    // of a square of products whose sums fill half of the registers
constexpr int64_t CHUNK = 32;  // bfloat16 of a register
constexpr int64_t ROWS = 64;   // tokens whose share is summed up in registers

inline __m512 join_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

inline __m512 join_fours(__m512 a, __m512 b) {
  __m512d left = _mm512_castps_pd(a), right = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(left, right)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(left, right)));
}

inline __m512 join_lanes(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

// The sum of each of sixteen registers, in their order.
inline __m512 sum_each(const __m512* v) {
  __m512 fours[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    fours[i] = join_fours(join_pairs(v[4 * i], v[4 * i + 1]), join_pairs(v[4 * i + 2], v[4 * i + 3]));
  return join_lanes(join_lanes(fours[0], fours[1]), join_lanes(fours[2], fours[3]));
}

// SIDE rows times SIDE vectors: [SIDE, SIDE] numbers.
inline __m256i dot_rows(const uint16_t* const* rows, const uint16_t* vectors, int64_t width) {
  __m512 sums[SIDE * SIDE];
#pragma GCC unroll 16
  for (int i = 0; i < SIDE * SIDE; ++i) sums[i] = _mm512_setzero_ps();
  for (int64_t w = 0; w < width; w += CHUNK) {
    __m512bh right[SIDE];
#pragma GCC unroll 4
    for (int r = 0; r < SIDE; ++r) right[r] = (__m512bh)_mm512_loadu_si512(vectors + r * width + w);
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; ++i) {
      auto left = (__m512bh)_mm512_loadu_si512(rows[i] + w);
#pragma GCC unroll 4
      for (int r = 0; r < SIDE; ++r) sums[i * SIDE + r] = _mm512_dpbf16_ps(sums[i * SIDE + r], left, right[r]);
    }
  }
  return narrow(sum_each(sums));
}

// RANKS rows of sums [RANKS, width] += pairs^T rows, over `steps` pairs of rows. Neighbouring rows are woven together
// as they come, which changes the order of columns within a register: `sums` keep that order.
inline void add_outer(const uint32_t* pairs, int64_t pairs_width, const uint16_t* rows, int64_t row, int64_t steps,
                      float* sums, int64_t width) {
  for (int64_t w = 0; w < width; w += CHUNK) {
    __m512 low[RANKS], high[RANKS];
#pragma GCC unroll 8
    for (int r = 0; r < RANKS; ++r) {
      low[r] = _mm512_loadu_ps(sums + r * width + w);
      high[r] = _mm512_loadu_ps(sums + r * width + w + LANES);
    }
    for (int64_t s = 0; s < steps; ++s) {
      const uint16_t* place = rows + 2 * s * row + w;
      _mm_prefetch(reinterpret_cast<const char*>(place + 2 * CHUNK), _MM_HINT_T0);
      _mm_prefetch(reinterpret_cast<const char*>(place + row + 2 * CHUNK), _MM_HINT_T0);
      __m512i first = _mm512_loadu_si512(place), second = _mm512_loadu_si512(place + row);
      auto woven_low = (__m512bh)_mm512_unpacklo_epi16(first, second);
      auto woven_high = (__m512bh)_mm512_unpackhi_epi16(first, second);
#pragma GCC unroll 8
      for (int r = 0; r < RANKS; ++r) {
        auto pair = (__m512bh)_mm512_set1_epi32(static_cast<int32_t>(pairs[s * pairs_width + r]));
        low[r] = _mm512_dpbf16_ps(low[r], pair, woven_low);
        high[r] = _mm512_dpbf16_ps(high[r], pair, woven_high);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < RANKS; ++r) {
      _mm512_storeu_ps(sums + r * width + w, low[r]);
      _mm512_storeu_ps(sums + r * width + w + LANES, high[r]);
    }
  }
}

// Column c of a chunk lies here in the order that add_outer sums in.
inline int64_t woven(int64_t c) { return (c % 8 / 4) * LANES + c / 8 * 4 + c % 4; }

template <int TOKENS, int VECTORS>
inline void add_tile(Left a, Right b, uint16_t* c, int64_t row, int64_t steps) {
  __m512 sums[TOKENS][VECTORS];
#pragma GCC unroll 6
  for (int i = 0; i < TOKENS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j)
      sums[i][j] = _mm512_castsi512_ps(
          _mm512_slli_epi32(widen(reinterpret_cast<const char*>(c + i * row + j * LANES)), 16));
  for (int64_t s = 0; s < steps; ++s) {
    __m512bh right[VECTORS];
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j) right[j] = (__m512bh)_mm512_loadu_si512(b.data + s * b.step + j * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < TOKENS; ++i) {
      int32_t pair;
      std::memcpy(&pair, a.data + i * a.row + s * a.step, 4);
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j)
        sums[i][j] = _mm512_dpbf16_ps(sums[i][j], (__m512bh)_mm512_set1_epi32(pair), right[j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < TOKENS; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < VECTORS; ++j)
      _mm256_storeu_si256((__m256i*)(c + i * row + j * LANES), narrow(sums[i][j]));
}

template <int TOKENS>
inline void add_rows(Left a, const uint32_t* b, uint16_t* c, int64_t width, int64_t row, int64_t steps) {
  int64_t w = 0;
  for (; w + 4 * LANES <= width; w += 4 * LANES) add_tile<TOKENS, 4>(a, {b + w, width}, c + w, row, steps);
  for (; w < width; w += LANES) add_tile<TOKENS, 1>(a, {b + w, width}, c + w, row, steps);
}

}  // namespace

// out[N, R] = rows[N, W] vectors[R, W]^T; strides over rows, in numbers; `vectors` are read by both of theirs.
extern "C" void low_rank_dot(const uint16_t* rows, const uint16_t* vectors, uint16_t* out, const int64_t* sizes,
                             const int64_t* strides) {
  const int64_t N = sizes[0], W = sizes[1], R = sizes[2], padded = round_up(R, SIDE);
  std::vector<uint16_t> close(padded * W, 0);
  for (int64_t r = 0; r < R; ++r)
    for (int64_t w = 0; w < W; ++w) close[r * W + w] = vectors[r * strides[1] + w * strides[2]];
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n += SIDE) {
    const uint16_t* places[SIDE];
    for (int64_t i = 0; i < SIDE; ++i) places[i] = rows + std::min(n + i, N - 1) * strides[0];
    for (int64_t r = 0; r < R; r += SIDE) {
      alignas(32) uint16_t found[SIDE * SIDE];
      _mm256_store_si256((__m256i*)found, dot_rows(places, close.data() + r * W, W));
      for (int64_t i = 0; i < std::min(SIDE, N - n); ++i)
        std::memcpy(out + (n + i) * R + r, found + i * SIDE, 2 * std::min(SIDE, R - r));
    }
  }
}

// out[R, W] (float32) = left[N, R]^T rows[N, W]; strides over rows of both, in numbers.
extern "C" void low_rank_outer(const uint16_t* rows, const uint16_t* left, float* out, const int64_t* sizes,
                               const int64_t* strides) {
  const int64_t N = sizes[0], W = sizes[1], R = sizes[2], padded = round_up(R, RANKS), size = padded * W;
  std::vector<float> sums;
#pragma omp parallel
  {
#pragma omp single
    sums.assign(omp_get_num_threads() * size, 0.0f);
    float* own = sums.data() + omp_get_thread_num() * size;
    std::vector<uint32_t> pairs(ROWS / 2 * padded, 0);
    std::vector<uint16_t> last(2 * W, 0);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < N; n += ROWS) {
      int64_t num = std::min(ROWS, N - n);
      for (int64_t i = 0; i < num; i += 2)
        for (int64_t r = 0; r < R; ++r) {
          const uint16_t* place = left + (n + i) * strides[1] + r;
          pairs[i / 2 * padded + r] = place[0] | (i + 1 < num ? static_cast<uint32_t>(place[strides[1]]) << 16 : 0u);
        }
      for (int64_t r = 0; r < R; r += RANKS)
        add_outer(pairs.data() + r, padded, rows + n * strides[0], strides[0], num / 2, own + r * W, W);
      if (num % 2 == 0) continue;
      std::memcpy(last.data(), rows + (n + num - 1) * strides[0], 2 * W);  // a row of zeros follows it
      for (int64_t r = 0; r < R; r += RANKS)
        add_outer(pairs.data() + num / 2 * padded + r, padded, last.data(), W, 1, own + r * W, W);
    }
    const int64_t num_sums = static_cast<int64_t>(sums.size());
#pragma omp for schedule(static)
    for (int64_t w = 0; w < W; ++w)
      for (int64_t r = 0; r < R; ++r) {
        float total = 0.0f;
        int64_t place = r * W + w / CHUNK * CHUNK + woven(w % CHUNK);
        for (int64_t from = place; from < num_sums; from += size) total += sums[from];
        out[r * W + w] = total;
      }
  }
}

// rows[N, W] += left[N, R] vectors[R, W]; strides over rows of both in numbers; `vectors` are read by both of theirs.
extern "C" void low_rank_add(uint16_t* rows, const uint16_t* left, const uint16_t* vectors, const int64_t* sizes,
                             const int64_t* strides) {
  const int64_t N = sizes[0], W = sizes[1], R = sizes[2];
  std::vector<uint32_t> pairs(R / 2 * W);
  for (int64_t r = 0; r < R; r += 2)
    for (int64_t w = 0; w < W; ++w) {
      const uint16_t* place = vectors + r * strides[2] + w * strides[3];
      pairs[r / 2 * W + w] = place[0] | static_cast<uint32_t>(place[strides[2]]) << 16;
    }
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; n += TILE) {
    Left a{reinterpret_cast<const char*>(left + n * strides[1]), 2 * strides[1], 4};
    uint16_t* c = rows + n * strides[0];
    if (n + TILE <= N) {
      add_rows<TILE>(a, pairs.data(), c, W, strides[0], R / 2);
      continue;
    }
    for (int64_t i = n; i < N; ++i, a.data += a.row, c += strides[0])
      add_rows<1>(a, pairs.data(), c, W, strides[0], R / 2);
  }
}

#endif
