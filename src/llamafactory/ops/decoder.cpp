// The next token's scores of several answers at once, for decoders of the Llama kind on a CPU: one call runs all layers,
// without the interpreter between them, and reads every weight once. float32 inside; weights, pages and the inputs of
// products are bf16 or float32. Built by native.py; plain C entry points.
// Every row is computed in an order that does not depend on the others (row_products.h, paged_attention.h).
// Shapes: M rows, D hidden, F feed-forward width, H query heads, K key heads, E width of a head, V vocabulary.

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "paged_attention.h"
#include "row_products.h"

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_num_threads() { return 1; }
static int omp_get_thread_num() { return 0; }
#endif

namespace {

template <typename T>
struct Layer {  // in the order in which decoder.py lists the tensors; biases and norms of heads may be missing
  const T *norm1, *q, *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *o, *o_bias, *norm2, *gate, *up, *down;
  T *keys, *values;
};

struct Shape {
  int64_t layers, hidden, inner, heads, key_heads, width, vocabulary, rows, pages_per_row;
  int64_t queries() const { return heads * width; }
  int64_t keys() const { return key_heads * width; }
};

struct Numbers {
  float eps, scale;
};

template <typename T>
struct Call {
  const T *embeddings, *norm, *head;
  const Layer<T>* layers;
  const int64_t *windows, *tokens;
  const int32_t *table, *positions;
  const float *cos, *sin;  // [M, E]
  float* logits;           // [M, V]
  Shape size;
  Numbers number;
};

// Lets threads wait for each other some two hundred times a step. OpenMP's own barrier soon puts a thread to sleep,
// and on a busy machine each waking costs more than all the work between two barriers.
class Barrier {
 public:
  void wait(int64_t threads) {
    const int64_t mine = arrived_.fetch_add(1, std::memory_order_acq_rel);
    const int64_t all = (mine / threads + 1) * threads;
    for (int64_t spins = 0; arrived_.load(std::memory_order_acquire) < all; ++spins)
      if (spins > SPINS) std::this_thread::yield();
  }

 private:
  static constexpr int64_t SPINS = 20000;
  std::atomic<int64_t> arrived_{0};
};

// What the threads share: the residual stream, and what goes between two products.
template <typename T>
struct Room {
  Barrier barrier;
  std::vector<float> x, qkv;
  std::vector<T> read, inner;
  explicit Room(const Shape& size)
      : x(size.rows * size.hidden),
        qkv(size.rows * (size.queries() + 2 * size.keys())),
        read(size.rows * size.queries()),
        inner(size.rows * size.inner) {}
};

inline float rms_share(const float* x, int64_t width, float eps) {
  float total = 0.0f;
#pragma omp simd reduction(+ : total)
  for (int64_t i = 0; i < width; ++i) total += x[i] * x[i];
  return 1.0f / std::sqrt(total / static_cast<float>(width) + eps);
}

template <typename T>
void norm_rows(const Call<T>& call, const std::vector<float>& x, const T* weight, T* y) {
  const int64_t width = call.size.hidden;
  for (int64_t m = 0; m < call.size.rows; ++m) {
    const float share = rms_share(x.data() + m * width, width, call.number.eps);
    for (int64_t i = 0; i < width; ++i) store(y + m * width + i, x[m * width + i] * share * load(weight[i]));
  }
}

// One head: norm where the model has one, then the rotation of its position.
template <typename T>
void turn(const Call<T>& call, int64_t m, const T* norm, const float* in, float* out) {
  const int64_t width = call.size.width, half = width / 2;
  const float *cos = call.cos + m * width, *sin = call.sin + m * width;
  const float share = norm ? rms_share(in, width, call.number.eps) : 1.0f;
  for (int64_t i = 0; i < half; ++i) {
    const float first = norm ? in[i] * share * load(norm[i]) : in[i];
    const float second = norm ? in[i + half] * share * load(norm[i + half]) : in[i + half];
    out[i] = first * cos[i] - second * sin[i];
    out[i + half] = second * cos[i + half] + first * sin[i + half];
  }
}

template <typename T>
void project(const Call<T>& call, const Layer<T>& layer, const T* y, Room<T>& room, Part part) {
  const Shape& size = call.size;
  const T *weights[] = {layer.q, layer.k, layer.v}, *biases[] = {layer.q_bias, layer.k_bias, layer.v_bias};
  const int64_t counts[] = {size.queries(), size.keys(), size.keys()}, row = size.queries() + 2 * size.keys();
  int64_t first = 0;
  for (int i = 0; i < 3; first += counts[i++]) {
    const T* bias = biases[i];
    float* out = room.qkv.data() + first;
    multiply(weights[i], y, size.rows, size.hidden, counts[i], part,
             [=](int64_t m, int64_t n, float sum) { out[m * row + n] = bias ? sum + load(bias[n]) : sum; });
  }
}

// One row and one of its key heads: store the new key and value, then read the row's pages.
template <typename T>
void attend(const Call<T>& call, const Layer<T>& layer, int64_t window, int64_t item, Room<T>& room,
            std::vector<float>& scratch, std::vector<float>& heads) {
  const Shape& size = call.size;
  const int64_t m = item / size.key_heads, head = item % size.key_heads, group = size.heads / size.key_heads;
  const int64_t width = size.width;
  const Pages<T> pages{layer.keys, layer.values, call.table, size.key_heads, width, size.pages_per_row, window, 0.0f};
  const Place at{m, call.positions[m], head};
  const float* q = room.qkv.data() + m * (size.queries() + 2 * size.keys()) + head * group * width;
  const float* k = room.qkv.data() + m * (size.queries() + 2 * size.keys()) + size.queries() + head * width;
  const float* v = k + size.keys();

  turn(call, m, layer.k_norm, k, heads.data());
  T *key = pages.key(m, at.position, head), *value = pages.value(m, at.position, head);
  for (int64_t i = 0; i < width; ++i) {
    store(key + i * SLOTS, heads[i]);
    store(value + i, v[i]);
  }
  for (int64_t g = 0; g < group; ++g) turn(call, m, layer.q_norm, q + g * width, heads.data() + g * width);
  for (int64_t i = 0; i < group * width; ++i) heads[i] *= call.number.scale;
  attend_heads(pages, at, group, heads.data(), room.read.data() + m * size.queries() + head * group * width, scratch);
}

template <typename T>
void feed(const Call<T>& call, const Layer<T>& layer, const T* y, Room<T>& room, Part part) {
  const Shape& size = call.size;
  std::vector<float> gates(size.rows * TILE);
  for (int64_t i = part.begin(size.inner); i < part.end(size.inner); i += TILE) {  // the width is a multiple of it
    multiply_strip<TILE>(layer.gate + i * size.hidden, y, size.rows, size.hidden,
                         [&](int64_t m, int64_t n, float sum) { gates[m * TILE + n] = sum; });
    for (float& gate : gates) gate /= 1.0f + exponential(-gate);
    multiply_strip<TILE>(layer.up + i * size.hidden, y, size.rows, size.hidden, [&](int64_t m, int64_t n, float sum) {
      store(room.inner.data() + m * size.inner + i + n, gates[m * TILE + n] * sum);
    });
  }
}

// A thread's part of everything; the barriers stand where one phase reads what others wrote.
template <typename T>
void run(const Call<T>& call, Room<T>& room, Part part) {
  const Shape& size = call.size;
  const int64_t width = size.hidden;
  std::vector<T> y(size.rows * width);
  std::vector<float> scratch, heads(size.heads / size.key_heads * size.width);
  const auto wait = [&] { room.barrier.wait(part.threads); };
  const auto add = [&](int64_t m, int64_t n, float sum) { room.x[m * width + n] += sum; };
  for (int64_t i = part.thread; i < size.rows * width; i += part.threads)
    room.x[i] = load(call.embeddings[call.tokens[i / width] * width + i % width]);
  wait();
  for (int64_t l = 0; l < size.layers; ++l) {
    const Layer<T>& layer = call.layers[l];
    norm_rows(call, room.x, layer.norm1, y.data());
    project(call, layer, y.data(), room, part);
    wait();
    for (int64_t item = part.thread; item < size.rows * size.key_heads; item += part.threads)
      attend(call, layer, call.windows[l], item, room, scratch, heads);
    wait();
    const T* bias = layer.o_bias;
    multiply(layer.o, room.read.data(), size.rows, size.queries(), width, part,
             [&](int64_t m, int64_t n, float sum) { add(m, n, bias ? sum + load(bias[n]) : sum); });
    wait();
    norm_rows(call, room.x, layer.norm2, y.data());
    feed(call, layer, y.data(), room, part);
    wait();
    multiply(layer.down, room.inner.data(), size.rows, size.inner, width, part, add);
    wait();
  }
  norm_rows(call, room.x, call.norm, y.data());
  multiply(call.head, y.data(), size.rows, width, size.vocabulary, part,
           [&](int64_t m, int64_t n, float sum) { call.logits[m * size.vocabulary + n] = sum; });
}

template <typename T>
void decode(void** weights, void** inputs, const int64_t* sizes, const int64_t* windows, float eps, float scale) {
  Call<T> call;
  call.embeddings = static_cast<const T*>(weights[0]);
  call.norm = static_cast<const T*>(weights[1]);
  call.head = static_cast<const T*>(weights[2]);
  call.layers = reinterpret_cast<const Layer<T>*>(weights + 3);
  call.windows = windows;
  call.tokens = static_cast<const int64_t*>(inputs[0]);
  call.table = static_cast<const int32_t*>(inputs[1]);
  call.positions = static_cast<const int32_t*>(inputs[2]);
  call.cos = static_cast<const float*>(inputs[3]);
  call.sin = static_cast<const float*>(inputs[4]);
  call.logits = static_cast<float*>(inputs[5]);
  std::memcpy(&call.size, sizes, sizeof(Shape));
  call.number = {eps, scale};
  Room<T> room(call.size);
#pragma omp parallel
  run(call, room, Part{omp_get_thread_num(), omp_get_num_threads()});
}

}  // namespace

extern "C" {

void decode_bf16(void** weights, void** inputs, const int64_t* sizes, const int64_t* windows, float eps, float scale) {
  decode<bf16>(weights, inputs, sizes, windows, eps, scale);
}

void decode_f32(void** weights, void** inputs, const int64_t* sizes, const int64_t* windows, float eps, float scale) {
  decode<float>(weights, inputs, sizes, windows, eps, scale);
}

}
