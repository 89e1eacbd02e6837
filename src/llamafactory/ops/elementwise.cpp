// Element-wise pieces of a decoder layer for the CPU: one pass over memory each, float32 inside, bf16 or float32
// outside. Built by native.py for the machine it runs on; plain C entry points, so that no header of torch is needed.
// Shapes: N rows, D width, B rows of a batch, H heads, T tokens.

#include <cstdint>
#include <vector>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads() { return 1; }
static int omp_get_thread_num() { return 0; }
#endif

#include "lanes.h"

namespace {

// Value and slope of the two activations; 1 is the tanh form of GELU, by tanh(z) = 1 - 2 / (exp(2 z) + 1).
template <int KIND>
inline void activate(float g, float* value, float* slope) {
  if (KIND == 0) {
    float s = 1.0f / (1.0f + exponential(-g));
    *value = g * s;
    *slope = s * (1.0f + g * (1.0f - s));
  } else {
    const float c = 0.79788456080286536f, a = 0.044715f;
    float t = 1.0f - 2.0f / (exponential(2.0f * c * (g + a * g * g * g)) + 1.0f);
    *value = 0.5f * g * (1.0f + t);
    *slope = 0.5f * (1.0f + t) + 0.5f * g * (1.0f - t * t) * c * (1.0f + 3.0f * a * g * g);
  }
}

template <typename T>
void rms_forward(const T* x, const T* weight, T* y, float* rstd, int64_t N, int64_t D, float eps, float shift) {
#pragma omp parallel for schedule(static)
  for (int64_t n = 0; n < N; ++n) {
    const T* row = x + n * D;
    T* out = y + n * D;
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t d = 0; d < D; ++d) {
      float v = load(row[d]);
      squares += v * v;
    }
    float r = 1.0f / __builtin_sqrtf(squares / static_cast<float>(D) + eps);
    rstd[n] = r;
#pragma omp simd
    for (int64_t d = 0; d < D; ++d) store(&out[d], load(row[d]) * r * (load(weight[d]) + shift));
  }
}

template <typename T>
void rms_backward(const T* dy, const T* x, const T* weight, const float* rstd, T* dx, float* dweight, int64_t N,
                  int64_t D, float shift) {
  int num_threads = omp_get_max_threads();
  std::vector<float> sums(dweight ? static_cast<size_t>(num_threads) * D : 0, 0.0f);
#pragma omp parallel for schedule(static) num_threads(num_threads)
  for (int64_t n = 0; n < N; ++n) {
    const T *grad = dy + n * D, *row = x + n * D;
    T* out = dx + n * D;
    float r = rstd[n], dot = 0.0f;
#pragma omp simd reduction(+ : dot)
    for (int64_t d = 0; d < D; ++d) dot += load(grad[d]) * (load(weight[d]) + shift) * load(row[d]);
    float share = dot * r * r / static_cast<float>(D);
#pragma omp simd
    for (int64_t d = 0; d < D; ++d)
      store(&out[d], r * (load(grad[d]) * (load(weight[d]) + shift) - load(row[d]) * share));
    if (dweight) {
      float* sum = sums.data() + static_cast<int64_t>(omp_get_thread_num()) * D;
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) sum[d] += load(grad[d]) * load(row[d]) * r;
    }
  }
  for (int t = 0; dweight && t < num_threads; ++t)
    for (int64_t d = 0; d < D; ++d) dweight[d] += sums[static_cast<int64_t>(t) * D + d];
}

template <typename T, int KIND>
void gated_forward(const T* gate, const T* up, T* out, int64_t n) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    float value, slope;
    activate<KIND>(load(gate[i]), &value, &slope);
    store(&out[i], value * load(up[i]));
  }
}

template <typename T, int KIND>
void gated_backward(const T* gate, const T* up, const T* dout, T* out, T* dgate, T* dup, int64_t n) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    float value, slope, u = load(up[i]), d = load(dout[i]);
    activate<KIND>(load(gate[i]), &value, &slope);
    store(&out[i], value * u);
    store(&dgate[i], d * u * slope);
    store(&dup[i], d * value);
  }
}

// (x1, x2) -> (x1 c1 - x2 s1, x2 c2 + x1 s2), the two halves of a head; the inverse flag applies the transpose.
// `strides`: of the input, the output and the angles, each over rows of the batch, heads (not the angles) and tokens.
template <typename T, typename A>
void rotate(const T* x, const A* cosine, const A* sine, T* y, const int64_t* sizes, const int64_t* strides,
            int inverse) {
  const int64_t B = sizes[0], H = sizes[1], L = sizes[2], half = sizes[3] / 2;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t t = 0; t < L; ++t) {
      const A* c = cosine + b * strides[6] + t * strides[7];
      const A* s = sine + b * strides[6] + t * strides[7];
      for (int64_t h = 0; h < H; ++h) {
        const T* in = x + b * strides[0] + h * strides[1] + t * strides[2];
        T* out = y + b * strides[3] + h * strides[4] + t * strides[5];
        if (inverse) {
#pragma omp simd
          for (int64_t d = 0; d < half; ++d) {
            float first = load(in[d]), second = load(in[d + half]);
            store(&out[d], first * load(c[d]) + second * load(s[d + half]));
            store(&out[d + half], second * load(c[d + half]) - first * load(s[d]));
          }
        } else {
#pragma omp simd
          for (int64_t d = 0; d < half; ++d) {
            float first = load(in[d]), second = load(in[d + half]);
            store(&out[d], first * load(c[d]) - second * load(s[d]));
            store(&out[d + half], second * load(c[d + half]) + first * load(s[d + half]));
          }
        }
      }
    }
  }
}

}  // namespace

#define ENTRY_POINTS(NAME, T)                                                                                         \
  extern "C" void rms_forward_##NAME(const T* x, const T* weight, T* y, float* rstd, int64_t N, int64_t D, float eps, \
                                     float shift) {                                                                   \
    rms_forward<T>(x, weight, y, rstd, N, D, eps, shift);                                                             \
  }                                                                                                                   \
  extern "C" void rms_backward_##NAME(const T* dy, const T* x, const T* weight, const float* rstd, T* dx,             \
                                      float* dweight, int64_t N, int64_t D, float shift) {                            \
    rms_backward<T>(dy, x, weight, rstd, dx, dweight, N, D, shift);                                                   \
  }                                                                                                                   \
  extern "C" void gated_forward_##NAME(const T* gate, const T* up, T* out, int64_t n, int kind) {                     \
    kind == 0 ? gated_forward<T, 0>(gate, up, out, n) : gated_forward<T, 1>(gate, up, out, n);                        \
  }                                                                                                                   \
  extern "C" void gated_backward_##NAME(const T* gate, const T* up, const T* dout, T* out, T* dgate, T* dup,          \
                                        int64_t n, int kind) {                                                        \
    kind == 0 ? gated_backward<T, 0>(gate, up, dout, out, dgate, dup, n)                                              \
              : gated_backward<T, 1>(gate, up, dout, out, dgate, dup, n);                                             \
  }

#define ROTATE(NAME, T, A)                                                                                 \
  extern "C" void rotate_##NAME(const T* x, const A* cosine, const A* sine, T* y, const int64_t* sizes,    \
                                const int64_t* strides, int inverse) {                                     \
    rotate<T, A>(x, cosine, sine, y, sizes, strides, inverse);                                             \
  }

ENTRY_POINTS(bf16, bf16)
ENTRY_POINTS(f32, float)
ROTATE(bf16_bf16, bf16, bf16)
ROTATE(bf16_f32, bf16, float)
ROTATE(f32_f32, float, float)
