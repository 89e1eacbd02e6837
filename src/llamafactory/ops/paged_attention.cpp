// Attention over pages for the CPU: new tokens are stored, then each query reads its own row. Built by native.py for
// the machine it runs on; plain C entry points, so that no header of torch is needed. Shapes: see paged_attention.h.

#include "paged_attention.h"

namespace {

struct Sizes {
  int64_t tokens, heads, key_heads, width, pages_per_row, window;
  int64_t q_head, q_token, k_head, k_token, v_head, v_token;  // strides of the new tensors
};

// Tensors: q, k, v, keys, values, table, rows, positions, out [T, H, E].
template <typename T>
void attend(void** t, const int64_t* numbers, float scale, float softcap) {
  Sizes size;
  std::memcpy(&size, numbers, sizeof(size));
  const T *q = static_cast<const T*>(t[0]), *k = static_cast<const T*>(t[1]), *v = static_cast<const T*>(t[2]);
  const Pages<T> pages{static_cast<T*>(t[3]), static_cast<T*>(t[4]), static_cast<const int32_t*>(t[5]),
                       size.key_heads,        size.width,            size.pages_per_row,
                       size.window,           softcap};
  const int32_t *rows = static_cast<const int32_t*>(t[6]), *positions = static_cast<const int32_t*>(t[7]);
  T* out = static_cast<T*>(t[8]);
  const int64_t group = size.heads / size.key_heads, width = size.width;

  for (int64_t token = 0; token < size.tokens; ++token)
    for (int64_t head = 0; rows[token] >= 0 && head < size.key_heads; ++head) {
      T* key = pages.key(rows[token], positions[token], head);
      for (int64_t e = 0; e < width; ++e) key[e * SLOTS] = k[head * size.k_head + token * size.k_token + e];
      std::memcpy(pages.value(rows[token], positions[token], head), v + head * size.v_head + token * size.v_token,
                  width * sizeof(T));
    }

#pragma omp parallel
  {
    std::vector<float> room, queries(group * width);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < size.tokens * size.key_heads; ++item) {
      const int64_t token = item / size.key_heads, head = item % size.key_heads;
      if (rows[token] < 0) continue;
      for (int64_t g = 0; g < group; ++g)
        for (int64_t e = 0; e < width; ++e)
          queries[g * width + e] = load(q[(head * group + g) * size.q_head + token * size.q_token + e]) * scale;
      attend_heads(pages, {rows[token], positions[token], head}, group, queries.data(),
                   out + (token * size.heads + head * group) * width, room);
    }
  }
}

}  // namespace

extern "C" {

void paged_attention_bf16(void** tensors, const int64_t* sizes, float scale, float softcap) {
  attend<bf16>(tensors, sizes, scale, softcap);
}

void paged_attention_f32(void** tensors, const int64_t* sizes, float scale, float softcap) {
  attend<float>(tensors, sizes, scale, softcap);
}

}
