// Attention of one query token over keys and values that lie in pages; float32 inside.
// Every query is computed by itself in one fixed order, so its result does not depend on what stands beside it.
// Shapes: H query heads, K key heads, E width of a head (F: rounded up to 16), P pages of S slots, N pages per row. A
// page's keys lie [K, E, S], so that one register holds one place of many keys; its values [K, S, F].

#pragma once

#include <vector>

#include "lanes.h"

namespace {

constexpr int64_t SLOTS = 32;  // tokens of a page
constexpr int64_t KEY_VECTORS = SLOTS / LANES;
constexpr int64_t MOST = 4;  // query heads, and vectors of a value, that are summed in registers together

// One layer's pages.
template <typename T>
struct Pages {
  T *keys, *values;
  const int32_t* table;
  int64_t key_heads, width, pages_per_row, window;
  float softcap;

  int64_t wide() const { return (width + LANES - 1) / LANES * LANES; }

  // Which block of keys, and of values, holds one head of the page that a position is in.
  int64_t block(int64_t row, int64_t position, int64_t head) const {
    return table[row * pages_per_row + position / SLOTS] * key_heads + head;
  }

  T* key(int64_t row, int64_t position, int64_t head) const {
    return keys + block(row, position, head) * width * SLOTS + position % SLOTS;
  }

  T* value(int64_t row, int64_t position, int64_t head) const {
    return values + (block(row, position, head) * SLOTS + position % SLOTS) * wide();
  }
};

// One token and one of its key heads.
struct Place {
  int64_t row, position, head;
};

// scores[g][slot] = queries[g] . key of the slot, for all slots of a page.
template <int GROUP, typename T>
void score_page(const float* queries, const T* keys, int64_t width, float* scores, int64_t length) {
  Lanes sums[GROUP][KEY_VECTORS] = {};
  for (int64_t e = 0; e < width; ++e)
#pragma GCC unroll 2
    for (int j = 0; j < KEY_VECTORS; ++j) {
      const Lanes key = load_lanes(keys + e * SLOTS + j * LANES);
#pragma GCC unroll 4
      for (int g = 0; g < GROUP; ++g) sums[g][j] += key * queries[g * width + e];
    }
#pragma GCC unroll 4
  for (int g = 0; g < GROUP; ++g) std::memcpy(scores + g * length, sums[g], sizeof(sums[g]));
}

// sums[g][VECTORS] = over all positions, weight times the value's part that starts at `column`.
template <int GROUP, int VECTORS, typename T>
void sum_values(const Pages<T>& pages, Place at, int64_t begin, int64_t column, const float* weights, int64_t length,
                float* out) {
  const int64_t wide = pages.wide(), first = begin / SLOTS * SLOTS, end = at.position + 1;
  Lanes sums[GROUP][VECTORS] = {};
  for (int64_t page = first; page < end; page += SLOTS) {
    const T* values = pages.value(at.row, page, at.head) + column;
    const int64_t stop = end < page + SLOTS ? end : page + SLOTS;
    for (int64_t i = begin > page ? begin : page; i < stop; ++i) {
      const T* value = values + (i - page) * wide;
      Lanes parts[VECTORS];
#pragma GCC unroll 4
      for (int j = 0; j < VECTORS; ++j) parts[j] = load_lanes(value + j * LANES);
#pragma GCC unroll 4
      for (int g = 0; g < GROUP; ++g) {
        const float weight = weights[g * length + i - first];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) sums[g][j] += parts[j] * weight;
      }
    }
  }
#pragma GCC unroll 4
  for (int g = 0; g < GROUP; ++g) std::memcpy(out + g * wide + column, sums[g], sizeof(sums[g]));
}

// Turn scores[from:to] into weights that add up to one.
inline void soft_max(float* scores, int64_t from, int64_t to, float softcap) {
  if (softcap > 0.0f)
    for (int64_t i = from; i < to; ++i) scores[i] = softcap * __builtin_tanhf(scores[i] / softcap);
  float highest = scores[from], total = 0.0f;
#pragma omp simd reduction(max : highest)
  for (int64_t i = from; i < to; ++i) highest = scores[i] > highest ? scores[i] : highest;
#pragma omp simd reduction(+ : total)
  for (int64_t i = from; i < to; ++i) {
    scores[i] = exponential(scores[i] - highest);
    total += scores[i];
  }
  const float share = 1.0f / total;
  for (int64_t i = from; i < to; ++i) scores[i] *= share;
}

// GROUP queries [GROUP, E], already scaled, that share a key head; their results go to out [GROUP, E].
template <int GROUP, typename T>
void attend_group(const Pages<T>& pages, Place at, const float* queries, T* out, std::vector<float>& room) {
  const int64_t width = pages.width, wide = pages.wide(), end = at.position + 1;
  const int64_t begin = pages.window > 0 && end > pages.window ? end - pages.window : 0;
  const int64_t first = begin / SLOTS * SLOTS, length = (end - first + SLOTS - 1) / SLOTS * SLOTS;
  room.resize(GROUP * (length + wide));
  float *scores = room.data(), *sums = scores + GROUP * length;
  for (int64_t page = first; page < end; page += SLOTS)
    score_page<GROUP>(queries, pages.key(at.row, page, at.head), width, scores + page - first, length);
  for (int64_t g = 0; g < GROUP; ++g) soft_max(scores + g * length, begin - first, end - first, pages.softcap);

  int64_t column = 0;
  for (; column + MOST * LANES <= wide; column += MOST * LANES)
    sum_values<GROUP, MOST>(pages, at, begin, column, scores, length, sums);
  for (; column < wide; column += LANES) sum_values<GROUP, 1>(pages, at, begin, column, scores, length, sums);
  for (int64_t g = 0; g < GROUP; ++g)
    for (int64_t e = 0; e < width; ++e) store(out + g * width + e, sums[g * wide + e]);
}

// The same for any number of queries.
template <typename T>
void attend_heads(const Pages<T>& pages, Place at, int64_t group, const float* queries, T* out,
                  std::vector<float>& room) {
  for (; group >= MOST; group -= MOST, queries += MOST * pages.width, out += MOST * pages.width)
    attend_group<MOST>(pages, at, queries, out, room);
  if (group == 3) attend_group<3>(pages, at, queries, out, room);
  if (group == 2) attend_group<2>(pages, at, queries, out, room);
  if (group == 1) attend_group<1>(pages, at, queries, out, room);
}

}  // namespace
