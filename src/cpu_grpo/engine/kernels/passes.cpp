// The passes over memory between matrix products, each fused into one, called with plain pointers.
//
// Formula    norm            out = x / sqrt(mean(x^2) + eps) * weight, having added delta to x
//            swiglu          out = silu(gate) * up
//            rotary          (a, b) -> (a cos - b sin, b cos + a sin), pairs being (j, j + d / 2)
//            causal_softmax  softmax(scale * scores) over what a row may see, 0 elsewhere; logs of the sums of exps
//            exps            the same without a mask, not divided by the sums
//            softmax_again   softmax(scale * scores) from the scores and these logs
//            token_scores    probabilities, log-probs of targets and entropies at a temperature
//            score_gradient  the gradient of the targets' log-probs by scores
//            ..._backward    their gradients
// Shapes     n rows of h features, d features of a head, s keys, v tokens; at each function
// Layout     Everything as torch has it, row after row; gates and ups side by side, (n, 2 h).
// Numbers    In fp32 or bf16, arithmetic in fp32, rounded once. The residual stream and norms' weights are fp32.
// Reference  the second half of each function in fused.py, by torch; tests/engine/kernels/test_fused.py, which has naive
//            versions and autograd's gradients too
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace {

inline float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// ---- RMSNorm -------------------------------------------------------------------------------------------------------

// x (n, h) += delta (n, h) where given; out (n, h) = x * scale * weight; scale (n,) = 1 / rms where wanted.
template <typename T>
void norm(float* x, const T* delta, const float* weight, float eps, T* out, float* scales, int64_t n, int64_t h) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float* row = x + i * h;
        if (delta) {
            const T* add = delta + i * h;
#pragma omp simd
            for (int64_t j = 0; j < h; j++) row[j] += wide(add[j]);
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t j = 0; j < h; j++) squares += row[j] * row[j];
        float scale = 1.0f / __builtin_sqrtf(squares / float(h) + eps);
        if (scales) scales[i] = scale;
        T* to = out + i * h;
#pragma omp simd
        for (int64_t j = 0; j < h; j++) put(to[j], row[j] * scale * weight[j]);
    }
}

// gradient (n, h) of the output -> dx (n, h) of the input, and dweight (parts, h): a partial sum for each part of rows.
template <typename T>
void norm_backward(const T* gradient, const float* x, const float* weight, const float* scales, float* dx,
                   float* dweight, int64_t n, int64_t h, int64_t parts) {
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < parts; part++) {
        float* sums = dweight + part * h;
        for (int64_t i = n * part / parts; i < n * (part + 1) / parts; i++) {
            const T* g = gradient + i * h;
            const float* row = x + i * h;
            float scale = scales[i], along = 0;
#pragma omp simd reduction(+ : along)
            for (int64_t j = 0; j < h; j++) along += wide(g[j]) * weight[j] * row[j];
            along *= scale * scale / float(h);
            float* to = dx + i * h;
#pragma omp simd
            for (int64_t j = 0; j < h; j++) {
                float given = wide(g[j]);
                sums[j] += given * row[j] * scale;
                to[j] = scale * (given * weight[j] - along * row[j]);
            }
        }
    }
}

// ---- SwiGLU --------------------------------------------------------------------------------------------------------

// x (n, 2 h), gates then ups -> out (n, h) = silu(gate) * up
template <typename T>
void swiglu(const T* x, T* out, int64_t n, int64_t h) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const T *gate = x + i * 2 * h, *up = gate + h;
        T* to = out + i * h;
#pragma omp simd
        for (int64_t j = 0; j < h; j++) put(to[j], wide(gate[j]) * sigmoid(wide(gate[j])) * wide(up[j]));
    }
}

template <typename T>
void swiglu_backward(const T* gradient, const T* x, T* dx, int64_t n, int64_t h) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const T *g = gradient + i * h, *gate = x + i * 2 * h, *up = gate + h;
        T *dgate = dx + i * 2 * h, *dup = dgate + h;
#pragma omp simd
        for (int64_t j = 0; j < h; j++) {
            float a = wide(gate[j]), b = wide(up[j]), s = sigmoid(a), given = wide(g[j]);
            put(dup[j], given * a * s);  // perhaps in the place of up[j]
            put(dgate[j], given * b * s * (1.0f + a * (1.0f - s)));
        }
    }
}

// ---- rotary embedding ----------------------------------------------------------------------------------------------

// x: n rows of `heads` heads of d, rows `stride` apart -> out (n, heads, d); sign -1 rotates back.
template <typename T>
void rotary(const T* x, int64_t stride, const float* cosines, const float* sines, float sign, T* out, int64_t n,
            int64_t heads, int64_t d) {
    int64_t half = d / 2;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        const float *c = cosines + i * half, *s = sines + i * half;
        for (int64_t head = 0; head < heads; head++) {
            const T* from = x + i * stride + head * d;
            T* to = out + (i * heads + head) * d;
#pragma omp simd
            for (int64_t j = 0; j < half; j++) {
                float a = wide(from[j]), b = wide(from[j + half]);
                put(to[j], a * c[j] - b * sign * s[j]);
                put(to[j + half], b * c[j] + a * sign * s[j]);
            }
        }
    }
}

// ---- the learner's attention weights -------------------------------------------------------------------------------

// scores (n, t, s), in place: row r of t sees the first s - t + 1 + r keys; softmax of scale * scores over those, else 0.
// logs (n, t) of the sums of their exps.
template <typename T>
void causal_softmax(T* scores, float* logs, float scale, int64_t n, int64_t t, int64_t s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * t; i++) {
        T* row = scores + i * s;
        int64_t seen = s - t + 1 + i % t;
        float highest = -3.0e38f, sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t j = 0; j < seen; j++) highest = wide(row[j]) > highest ? wide(row[j]) : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < seen; j++) sum += exponential((wide(row[j]) - highest) * scale);
        float share = 1.0f / sum;
        logs[i] = highest * scale + __builtin_logf(sum);
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) put(row[j], exponential((wide(row[j]) - highest) * scale) * share);
        std::memset(static_cast<void*>(row + seen), 0, (s - seen) * sizeof(T));
    }
}

// scores (n, s), in place to exp(scale * (scores - the row's highest)); their sums (n,), and logs (n,) of those of all of
// exp(scale * scores).
template <typename T>
void exps(T* scores, float* sums, float* logs, float scale, int64_t n, int64_t s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        T* row = scores + i * s;
        float highest = -3.0e38f, sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t j = 0; j < s; j++) highest = wide(row[j]) > highest ? wide(row[j]) : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < s; j++) {
            float e = exponential((wide(row[j]) - highest) * scale);
            sum += e;
            put(row[j], e);
        }
        sums[i] = sum;
        logs[i] = highest * scale + __builtin_logf(sum);
    }
}

// scores (n, s), in place to exp(scale * scores - logs (n,)).
template <typename T>
void softmax_again(T* scores, const float* logs, float scale, int64_t n, int64_t s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        T* row = scores + i * s;
        float log = logs[i];
#pragma omp simd
        for (int64_t j = 0; j < s; j++) put(row[j], exponential(wide(row[j]) * scale - log));
    }
}

// gradient (n, t, s) of the weights, in place, to that of the scores; along (n, t), its product with the weights.
template <typename T>
void causal_softmax_backward(T* gradient, const T* weights, const float* along, float scale, int64_t n, int64_t t,
                             int64_t s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * t; i++) {
        T* g = gradient + i * s;
        const T* w = weights + i * s;
        int64_t seen = s - t + 1 + i % t;
        float mean = along[i];
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) put(g[j], wide(w[j]) * (wide(g[j]) - mean) * scale);
        std::memset(static_cast<void*>(g + seen), 0, (s - seen) * sizeof(T));
    }
}

// ---- scores over the vocabulary ------------------------------------------------------------------------------------

// scores (n, v), in place to probabilities at the inverse temperature; logps (n,) of targets (n,); entropies (n,).
template <typename T>
void token_scores(T* scores, const int64_t* targets, float inverse, float* logps, float* entropies, int64_t n,
                  int64_t v) {
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i++) {
        T* row = scores + i * v;
        float highest = -3.0e38f, sum = 0, mean = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t j = 0; j < v; j++) highest = wide(row[j]) > highest ? wide(row[j]) : highest;
#pragma omp simd reduction(+ : sum, mean)
        for (int64_t j = 0; j < v; j++) {
            float x = __builtin_fmaxf((wide(row[j]) - highest) * inverse, -87.0f), e = exponential(x);
            sum += e;
            mean += e * x;
        }
        float total = __builtin_logf(sum), share = 1.0f / sum;
        logps[i] = (wide(row[targets[i]]) - highest) * inverse - total;
        entropies[i] = total - mean * share;
#pragma omp simd
        for (int64_t j = 0; j < v; j++) put(row[j], exponential((wide(row[j]) - highest) * inverse) * share);
    }
}

// scores (n, v), in place to scale (n,) times the gradient of the targets' log-probs: 1 at targets (n,), where they are among
// the v, less the probabilities. totals (n,) are the logs of the sums of exps over the whole vocabulary.
template <typename T>
void score_gradient(T* scores, const int64_t* targets, const float* totals, const float* scale, float inverse, int64_t n,
                    int64_t v) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        T* row = scores + i * v;
        float total = totals[i], by = scale[i];
        bool here = targets[i] >= 0 && targets[i] < v;
        float of_target = here ? by - by * exponential(wide(row[targets[i]]) * inverse - total) : 0;
#pragma omp simd
        for (int64_t j = 0; j < v; j++) put(row[j], -by * exponential(wide(row[j]) * inverse - total));
        if (here) put(row[targets[i]], of_target);
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL void norm_##SUFFIX(float* x, const T* delta, const float* weight, float eps, T* out, float* scales,         \
                              int64_t n, int64_t h) {                                                                  \
        norm(x, delta, weight, eps, out, scales, n, h);                                                                \
    }                                                                                                                  \
    KERNEL void norm_backward_##SUFFIX(const T* g, const float* x, const float* weight, const float* scales,           \
                                       float* dx, float* dweight, int64_t n, int64_t h, int64_t parts) {               \
        norm_backward(g, x, weight, scales, dx, dweight, n, h, parts);                                                 \
    }                                                                                                                  \
    KERNEL void swiglu_##SUFFIX(const T* x, T* out, int64_t n, int64_t h) { swiglu(x, out, n, h); }                    \
    KERNEL void swiglu_backward_##SUFFIX(const T* g, const T* x, T* dx, int64_t n, int64_t h) {                        \
        swiglu_backward(g, x, dx, n, h);                                                                               \
    }                                                                                                                  \
    KERNEL void rotary_##SUFFIX(const T* x, int64_t stride, const float* c, const float* s, float sign, T* out,        \
                                int64_t n, int64_t heads, int64_t d) {                                                 \
        rotary(x, stride, c, s, sign, out, n, heads, d);                                                               \
    }                                                                                                                  \
    KERNEL void causal_softmax_##SUFFIX(T* scores, float* logs, float scale, int64_t n, int64_t t, int64_t s) {        \
        causal_softmax(scores, logs, scale, n, t, s);                                                                  \
    }                                                                                                                  \
    KERNEL void exps_##SUFFIX(T* scores, float* sums, float* logs, float scale, int64_t n, int64_t s) {                \
        exps(scores, sums, logs, scale, n, s);                                                                         \
    }                                                                                                                  \
    KERNEL void softmax_again_##SUFFIX(T* scores, const float* logs, float scale, int64_t n, int64_t s) {              \
        softmax_again(scores, logs, scale, n, s);                                                                      \
    }                                                                                                                  \
    KERNEL void causal_softmax_backward_##SUFFIX(T* g, const T* weights, const float* along, float scale,              \
                                                 int64_t n, int64_t t, int64_t s) {                                    \
        causal_softmax_backward(g, weights, along, scale, n, t, s);                                                    \
    }                                                                                                                  \
    KERNEL void token_scores_##SUFFIX(T* scores, const int64_t* targets, float inverse, float* logps,                  \
                                      float* entropies, int64_t n, int64_t v) {                                        \
        token_scores(scores, targets, inverse, logps, entropies, n, v);                                                \
    }                                                                                                                  \
    KERNEL void score_gradient_##SUFFIX(T* scores, const int64_t* targets, const float* totals,                        \
                                        const float* scale, float inverse, int64_t n, int64_t v) {                     \
        score_gradient(scores, targets, totals, scale, inverse, n, v);                                                 \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
