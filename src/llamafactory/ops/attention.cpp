// Causal attention over documents in bfloat16, for processors with AVX512-BF16: scores, softmax and products of a few
// queries with all keys that they see stay in the cache, and what lies behind the diagonal is not computed. Scores,
// weights and sums are float32; what is multiplied is bfloat16, as in any product of matrices. Built by native.py.
//
// Shapes: T tokens of all documents, N documents, H query heads, G key/value heads (R = H / G query heads share one),
// D size of a query and a key, E size of a value; D and E are multiples of 16.

#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <cstdlib>
#include <vector>

#include "bf16_products.h"
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
#endif

namespace {

constexpr int64_t QUERIES = 24;  // of a block: even, and a multiple of the rows that products go by
constexpr int64_t STACKED = 96;  // queries of several heads whose shares in the gradients of keys one product adds up
constexpr float LOG2E = 1.44269504088896341f;

struct Case {
  int64_t num_documents, H, G, D, E, window, T;
  float scale, softcap;
  const int64_t* bounds;
  int64_t R() const { return H / G; }
};

// ---- softmax -------------------------------------------------------------------------------------------------------

// 2^y to 2e-7; 0 where it is too small to be held, NaN where y is.
inline __m512 power(__m512 y) {
  y = _mm512_max_ps(_mm512_set1_ps(-200.0f), y);
  __m512 n = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 f = _mm512_sub_ps(y, n), p = _mm512_set1_ps(1.54353139e-4f);
  for (float c : {1.33335581e-3f, 9.61812911e-3f, 5.55041087e-2f, 2.40226507e-1f, 6.93147181e-1f, 1.0f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  return _mm512_scalef_ps(p, n);
}

// The columns of a row that are looked at, [begin, end), multiples of LANES, and those that are seen, [low, high).
struct Span {
  int64_t begin, end, low, high;
};

void hide(float* scores, int64_t begin, int64_t end) {
  for (int64_t c = begin / LANES * LANES; c < end; c += LANES) {
    auto lanes = static_cast<uint32_t>(end - c >= LANES ? 0xffff : (1 << (end - c)) - 1);
    if (c < begin) lanes &= 0xffffu << (begin - c);
    _mm512_mask_storeu_ps(scores + c, static_cast<__mmask16>(lanes), _mm512_set1_ps(-__builtin_inff()));
  }
}

// Caps scores (they become softcap * tanh(s * scale / softcap)) and hides what is not seen; returns the scores' factor
// to the exponent of 2.
float prepare_scores(const Case& job, float* scores, Span span) {
  if (job.softcap > 0) {
    __m512 inner = _mm512_set1_ps(2.0f * LOG2E * job.scale / job.softcap), one = _mm512_set1_ps(1.0f);
    for (int64_t c = span.begin; c < span.end; c += LANES) {
      __m512 e = power(_mm512_mul_ps(_mm512_loadu_ps(scores + c), inner));
      __m512 tanh = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
      _mm512_storeu_ps(scores + c, _mm512_mul_ps(tanh, _mm512_set1_ps(job.softcap)));
    }
  }
  hide(scores, span.begin, span.low);
  hide(scores, span.high, span.end);
  return job.softcap > 0 ? LOG2E : LOG2E * job.scale;
}

// Writes the weights of a row times their sum, returns the sum's inverse and the binary logarithm of the normaliser.
float softmax(const Case& job, float* scores, uint16_t* weights, Span span, float* normaliser) {
  float factor = prepare_scores(job, scores, span);
  __m512 most = _mm512_set1_ps(-__builtin_inff()), by = _mm512_set1_ps(factor), total = _mm512_setzero_ps();
  for (int64_t c = span.begin; c < span.end; c += LANES) most = _mm512_max_ps(_mm512_loadu_ps(scores + c), most);
  float top = _mm512_reduce_max_ps(most) * factor;
  for (int64_t c = span.begin; c < span.end; c += LANES) {
    __m512 weight = power(_mm512_fmsub_ps(_mm512_loadu_ps(scores + c), by, _mm512_set1_ps(top)));
    total = _mm512_add_ps(total, weight);
    _mm256_storeu_si256((__m256i*)(weights + c), narrow(weight));
  }
  float sum = _mm512_reduce_add_ps(total);
  *normaliser = top + __builtin_log2f(sum);
  return 1.0f / sum;
}

// Turns the scores of a row into its weights and returns sum(weights * slopes), the part that softmax takes off.
float weigh(const Case& job, float* scores, const float* slopes, float* bends, Span span, float normaliser) {
  __m512 by = _mm512_set1_ps(prepare_scores(job, scores, span)), base = _mm512_set1_ps(normaliser);
  __m512 total = _mm512_setzero_ps();
  for (int64_t c = span.begin; c < span.end; c += LANES) {
    __m512 score = _mm512_loadu_ps(scores + c), weight = power(_mm512_fmsub_ps(score, by, base));
    if (job.softcap > 0) {  // a hidden score is -inf and its weight 0: any finite number serves there
      __m512 bent = _mm512_mul_ps(score, _mm512_set1_ps(1.0f / job.softcap));
      bent = _mm512_max_ps(bent, _mm512_set1_ps(-1.0f));
      _mm512_storeu_ps(bends + c, _mm512_fnmadd_ps(bent, bent, _mm512_set1_ps(1.0f)));
    }
    total = _mm512_fmadd_ps(weight, _mm512_loadu_ps(slopes + c), total);
    _mm512_storeu_ps(scores + c, weight);
  }
  return _mm512_reduce_add_ps(total);
}

inline __m512i join(__m256i low, __m256i high) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
}

// ---- work ----------------------------------------------------------------------------------------------------------

// Queries [first, last) of a document and a group of heads, and the keys from `origin` on; tokens of the document.
struct Task {
  int64_t start, group, first, last, origin, num_parts;
  float* sums;
  int64_t num_keys() const { return last - origin; }
};

// Cuts the work so that threads are busy alike: whole documents where there are many, parts of long ones.
std::vector<Task> plan(const Case& job) {
  double total = 0;
  for (int64_t n = 0; n < job.num_documents; ++n) {
    double length = static_cast<double>(job.bounds[n + 1] - job.bounds[n]);
    total += length * length * job.G;
  }
  double share = std::max(total / (4.0 * omp_get_max_threads()), 256.0 * 256.0);
  std::vector<Task> tasks;
  for (int64_t n = 0; n < job.num_documents; ++n) {
    int64_t start = job.bounds[n], length = job.bounds[n + 1] - start, first = 0;
    double cost = static_cast<double>(length) * length;
    auto parts = static_cast<int64_t>(__builtin_ceil(cost / share));
    for (int64_t part = 1; part <= parts; ++part) {  // of equal areas under the diagonal
      double edge = length * __builtin_sqrt(static_cast<double>(part) / parts);
      int64_t last = part == parts ? length : std::min(length, round_up(static_cast<int64_t>(edge), QUERIES));
      int64_t origin = job.window > 0 ? std::max<int64_t>(0, first - job.window + 1) / PANEL * PANEL : 0;
      for (int64_t group = 0; group < job.G && first < last; ++group)
        tasks.push_back({start, group, first, last, origin, parts, nullptr});
      first = last;
    }
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& some, const Task& other) {
    return (some.last - some.first) * some.num_keys() > (other.last - other.first) * other.num_keys();
  });
  return tasks;
}

// Memory of one thread, handed out piece by piece.
class Arena {
 public:
  explicit Arena(int64_t bytes) : data_(static_cast<char*>(std::aligned_alloc(64, round_up(bytes, 64)))) {}
  ~Arena() { std::free(data_); }
  template <typename T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(data_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return place;
  }
  void reset() { used_ = 0; }

 private:
  char* data_;
  int64_t used_ = 0;
};

int64_t most_keys(const std::vector<Task>& tasks) {
  int64_t most = 0;
  for (const Task& task : tasks) most = std::max(most, task.num_keys());
  return round_up(most, PANEL);
}

Span block_span(const Case& job, const Task& task, int64_t query, int64_t rows) {
  int64_t low = job.window > 0 ? std::max<int64_t>(0, query - job.window + 1 - task.origin) : 0;
  return {low / LANES * LANES, round_up(query + rows - task.origin, LANES), 0, 0};
}

Span row_span(const Case& job, const Task& task, Span block, int64_t query) {
  int64_t low = job.window > 0 ? query - job.window + 1 - task.origin : 0;
  return {block.begin, block.end, std::max(block.begin, low), query + 1 - task.origin};
}

// heads: query, key, value, and what each token reads, which is written with the normalisers of its heads, [H, T].
void read_forward(const Case& job, const Task& task, const Heads* heads, float* normalisers, Arena& arena) {
  const Heads &query = heads[0], &key = heads[1], &value = heads[2], &read = heads[3];
  int64_t keys = task.num_keys(), padded = round_up(keys, PANEL), width = padded + LANES;
  auto* key_columns = arena.take<uint32_t>(padded * job.D / 2);
  auto* value_rows = arena.take<uint32_t>(padded * job.E / 2);
  auto* scores = arena.take<float>(QUERIES * width);
  auto* weights = arena.take<uint16_t>(QUERIES * width);
  auto* sums = arena.take<float>(QUERIES * job.E);
  pack_columns(key, task.group, task.start + task.origin, keys, job.D, key_columns);
  pack_rows(value, task.group, task.start + task.origin, keys, padded, job.E, value_rows);
  for (int64_t first = task.first; first < task.last; first += QUERIES) {
    int64_t rows = std::min(QUERIES, task.last - first), place = task.start + first;
    Span block = block_span(job, task, first, rows);
    for (int64_t h = task.group * job.R(); h < (task.group + 1) * job.R(); ++h) {
      float inverses[QUERIES];
      multiply_panels({query.row(h, place), query.token, 4}, key_columns, scores, width, rows, block.begin, block.end,
                      job.D / 2);
      for (int64_t i = 0; i < rows; ++i)
        inverses[i] = softmax(job, scores + i * width, weights + i * width, row_span(job, task, block, first + i),
                              normalisers + h * job.T + place + i);
      Left left{reinterpret_cast<const char*>(weights + block.begin), 2 * width, 4};
      multiply_wide(left, value_rows + block.begin / 2 * job.E, sums, rows, job.E, (block.end - block.begin) / 2,
                    false);
      write_rows(sums, rows, job.E, inverses, 1.0f, read, h, place);
    }
  }
}

// What the backward pass of a task works with; a slope is the gradient of a weight, then of a score.
struct Backward {
  uint32_t *key_columns, *value_columns, *key_rows;
  float *scores, *slopes, *bends, *query_sums;  // of one head of a block
  uint16_t* slope_rows;                         // slopes as pairs along the keys,
  uint32_t *weight_pairs, *slope_pairs;         // weights and slopes as pairs along the queries, of stacked heads,
  uint32_t *query_pairs, *grad_pairs;           // and these queries and their gradients
  int64_t padded, width;
};

Backward lay_out(const Case& job, int64_t padded, Arena& arena) {
  Backward at{};
  const int64_t stacked = STACKED / 2;
  at.padded = padded, at.width = padded + LANES;
  at.key_columns = arena.take<uint32_t>(padded * job.D / 2);
  at.value_columns = arena.take<uint32_t>(padded * job.E / 2);
  at.key_rows = arena.take<uint32_t>(padded * job.D / 2);
  at.scores = arena.take<float>(QUERIES * at.width);
  at.slopes = arena.take<float>(QUERIES * at.width);
  at.bends = arena.take<float>(2 * at.width);
  at.query_sums = arena.take<float>(QUERIES * job.D);
  at.slope_rows = arena.take<uint16_t>(QUERIES * at.width);
  at.weight_pairs = arena.take<uint32_t>(stacked * at.width);
  at.slope_pairs = arena.take<uint32_t>(stacked * at.width);
  at.query_pairs = arena.take<uint32_t>(stacked * job.D);
  at.grad_pairs = arena.take<uint32_t>(stacked * job.E);
  return at;
}

// The weights of two rows, and the gradients of their scores, in the forms that the products want.
void write_pairs(const Case& job, const Backward& at, int64_t i, bool has_second, const float* parts, Span block,
                 int64_t pair) {
  const float *weights = at.scores + i * at.width, *slopes = at.slopes + i * at.width;
  __m512 first_part = _mm512_set1_ps(parts[0]), second_part = _mm512_set1_ps(parts[1]);
  for (int64_t c = block.begin; c < block.end; c += LANES) {
    __m512 weight = _mm512_loadu_ps(weights + c);
    __m512 slope = _mm512_mul_ps(weight, _mm512_sub_ps(_mm512_loadu_ps(slopes + c), first_part));
    if (job.softcap > 0) slope = _mm512_mul_ps(slope, _mm512_loadu_ps(at.bends + c));
    __m256i weight_low = narrow(weight), slope_low = narrow(slope);
    __m256i weight_high = _mm256_setzero_si256(), slope_high = weight_high;
    if (has_second) {
      weight = _mm512_loadu_ps(weights + at.width + c);
      slope = _mm512_mul_ps(weight, _mm512_sub_ps(_mm512_loadu_ps(slopes + at.width + c), second_part));
      if (job.softcap > 0) slope = _mm512_mul_ps(slope, _mm512_loadu_ps(at.bends + at.width + c));
      weight_high = narrow(weight), slope_high = narrow(slope);
      _mm256_storeu_si256((__m256i*)(at.slope_rows + (i + 1) * at.width + c), slope_high);
    }
    _mm256_storeu_si256((__m256i*)(at.slope_rows + i * at.width + c), slope_low);
    _mm512_storeu_si512(at.weight_pairs + pair * at.width + c, join(weight_low, weight_high));
    _mm512_storeu_si512(at.slope_pairs + pair * at.width + c, join(slope_low, slope_high));
  }
}

// heads: query, key, value and the gradient of what is read; the gradient of query is written, those of key and value
// are summed up in task.sums.
void read_backward(const Case& job, const Task& task, const Heads* heads, const float* normalisers, Arena& arena) {
  const Heads &query = heads[0], &key = heads[1], &value = heads[2], &grad = heads[3], &query_grad = heads[4];
  int64_t keys = task.num_keys(), origin = task.start + task.origin, last_head = (task.group + 1) * job.R();
  Backward at = lay_out(job, round_up(keys, PANEL), arena);
  float *key_sums = task.sums, *value_sums = task.sums + at.padded * job.D;
  std::memset(task.sums, 0, at.padded * (job.D + job.E) * sizeof(float));
  pack_columns(key, task.group, origin, keys, job.D, at.key_columns);
  pack_columns(value, task.group, origin, keys, job.E, at.value_columns);
  pack_rows(key, task.group, origin, keys, at.padded, job.D, at.key_rows);
  for (int64_t first = task.first; first < task.last; first += QUERIES) {
    int64_t rows = std::min(QUERIES, task.last - first), place = task.start + first, pairs = (rows + 1) / 2;
    Span block = block_span(job, task, first, rows);
    int64_t columns = block.end - block.begin, stacked = 0;
    for (int64_t h = task.group * job.R(); h < last_head; ++h) {
      multiply_panels({query.row(h, place), query.token, 4}, at.key_columns, at.scores, at.width, rows, block.begin,
                      block.end, job.D / 2);
      multiply_panels({grad.row(h, place), grad.token, 4}, at.value_columns, at.slopes, at.width, rows, block.begin,
                      block.end, job.E / 2);
      for (int64_t i = 0; i < rows; i += 2) {
        float parts[2] = {0, 0};
        for (int64_t row = i; row < std::min(i + 2, rows); ++row)
          parts[row - i] = weigh(job, at.scores + row * at.width, at.slopes + row * at.width,
                                 at.bends + (row - i) * at.width, row_span(job, task, block, first + row),
                                 normalisers[h * job.T + place + row]);
        write_pairs(job, at, i, i + 1 < rows, parts, block, stacked + i / 2);
      }
      Left left{reinterpret_cast<const char*>(at.slope_rows + block.begin), 2 * at.width, 4};
      multiply_wide(left, at.key_rows + block.begin / 2 * job.D, at.query_sums, rows, job.D, columns / 2, false);
      write_rows(at.query_sums, rows, job.D, nullptr, job.scale, query_grad, h, place);
      pack_rows(query, h, place, rows, 2 * pairs, job.D, at.query_pairs + stacked * job.D);
      pack_rows(grad, h, place, rows, 2 * pairs, job.E, at.grad_pairs + stacked * job.E);
      stacked += pairs;
      if (h + 1 < last_head && stacked + pairs <= STACKED / 2) continue;
      Left slopes{reinterpret_cast<const char*>(at.slope_pairs + block.begin), 4, 4 * at.width};
      Left weights{reinterpret_cast<const char*>(at.weight_pairs + block.begin), 4, 4 * at.width};
      multiply_wide(slopes, at.query_pairs, key_sums + block.begin * job.D, columns, job.D, stacked, true);
      multiply_wide(weights, at.grad_pairs, value_sums + block.begin * job.E, columns, job.E, stacked, true);
      stacked = 0;
    }
  }
}

// Adds up the parts of a document, whose sums of keys and values start at their own origins.
void merge(const Case& job, const Task& task, const std::vector<Task>& tasks, const Heads* heads) {
  int64_t length = 0;
  for (const Task& part : tasks)
    if (part.start == task.start) length = std::max(length, part.last);
  std::vector<float> total(length * (job.D + job.E), 0.0f);
  for (const Task& part : tasks) {
    if (part.start != task.start || part.group != task.group) continue;
    const float* values = part.sums + round_up(part.num_keys(), PANEL) * job.D;
    float* keys_to = total.data() + part.origin * job.D;
    float* values_to = total.data() + length * job.D + part.origin * job.E;
    for (int64_t i = 0; i < part.num_keys() * job.D; ++i) keys_to[i] += part.sums[i];
    for (int64_t i = 0; i < part.num_keys() * job.E; ++i) values_to[i] += values[i];
  }
  write_rows(total.data(), length, job.D, nullptr, job.scale, heads[5], task.group, task.start);
  write_rows(total.data() + length * job.D, length, job.E, nullptr, 1.0f, heads[6], task.group, task.start);
}

Case read_case(const int64_t* sizes, const float* numbers, const int64_t* bounds) {
  int64_t num_tokens = bounds[sizes[0]];
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], num_tokens, numbers[0], numbers[1], bounds};
}

std::vector<Heads> read_heads(void* const* places, const int64_t* strides, int num) {
  std::vector<Heads> heads;
  for (int i = 0; i < num; ++i) heads.push_back({static_cast<char*>(places[i]), strides[2 * i], strides[2 * i + 1]});
  return heads;
}

}  // namespace

// places and strides (bytes, over heads and tokens): query, key, value, then what is written: what each token reads.
// sizes: N, H, G, D, E and the window or 0; numbers: the scale and the soft cap or 0; normalisers: [H, T].
extern "C" void attention_forward(void* const* places, const int64_t* strides, const int64_t* sizes,
                                  const float* numbers, const int64_t* bounds, float* normalisers) {
  Case job = read_case(sizes, numbers, bounds);
  std::vector<Heads> heads = read_heads(places, strides, 4);
  std::vector<Task> tasks = plan(job);
  int64_t padded = most_keys(tasks), bytes = 2 * padded * (job.D + job.E) + 4 * QUERIES * job.E;
  bytes += 6 * QUERIES * (padded + LANES) + 1024;
#pragma omp parallel
  {
    Arena arena(bytes);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); ++i) {
      arena.reset();
      read_forward(job, tasks[i], heads.data(), normalisers, arena);
    }
  }
}

// The same, and behind value: the gradient of what is read, then what is written: those of query, key and value.
extern "C" void attention_backward(void* const* places, const int64_t* strides, const int64_t* sizes,
                                   const float* numbers, const int64_t* bounds, const float* normalisers) {
  Case job = read_case(sizes, numbers, bounds);
  std::vector<Heads> heads = read_heads(places, strides, 7);
  std::vector<Task> tasks = plan(job);
  int64_t padded = most_keys(tasks), width = padded + LANES, num_kept = 0;
  for (const Task& task : tasks)
    if (task.num_parts > 1) num_kept += round_up(task.num_keys(), PANEL) * (job.D + job.E);
  std::vector<float> kept(num_kept);
  float* free = kept.data();
  for (Task& task : tasks) {
    if (task.num_parts == 1) continue;
    task.sums = free;
    free += round_up(task.num_keys(), PANEL) * (job.D + job.E);
  }
  int64_t bytes = padded * (4 * job.D + 2 * job.E) + 4 * padded * (job.D + job.E) + 10 * QUERIES * width + 8 * width;
  bytes += 4 * QUERIES * job.D + 2 * STACKED * (2 * width + job.D + job.E) + 4096;
#pragma omp parallel
  {
    Arena arena(bytes);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); ++i) {
      arena.reset();
      Task task = tasks[i];
      bool is_whole = task.num_parts == 1;
      int64_t rows = round_up(task.num_keys(), PANEL);
      if (is_whole) task.sums = arena.take<float>(rows * (job.D + job.E));
      read_backward(job, task, heads.data(), normalisers, arena);
      if (!is_whole) continue;
      write_rows(task.sums, task.last, job.D, nullptr, job.scale, heads[5], task.group, task.start);
      write_rows(task.sums + rows * job.D, task.last, job.E, nullptr, 1.0f, heads[6], task.group, task.start);
    }
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < tasks.size(); ++i)
      if (tasks[i].num_parts > 1 && tasks[i].first == 0) merge(job, tasks[i], tasks, heads.data());
  }
}

#endif
