// The passes over memory between matrix products, each fused into one. Compiled on first use (see __init__.py), called
// with plain pointers. Every function exists for float and for bf16 storage; arithmetic is in float throughout.
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

enum class bf16 : uint16_t {};  // the upper half of a float

inline float wide(float x) { return x; }
inline float wide(bf16 x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }
inline void put(float& to, float x) { to = x; }
inline void put(bf16& to, float x) {  // to nearest, ties to even
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    to = bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp to about 2 units in the last place between -87 and 88, where it stops changing (1.6e-38 and 1.7e38); no branches,
// so that loops over it vectorise. Cephes' polynomial.
inline float exponential(float x) {
    x = __builtin_fminf(__builtin_fmaxf(x, -87.0f), 88.0f);
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __builtin_bit_cast(float, uint32_t(int32_t(n) + 127) << 23);
}

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
            float a = wide(gate[j]), s = sigmoid(a), given = wide(g[j]);
            put(dup[j], given * a * s);
            put(dgate[j], given * wide(up[j]) * s * (1.0f + a * (1.0f - s)));
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
template <typename T>
void causal_softmax(T* scores, float scale, int64_t n, int64_t t, int64_t s) {
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
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) put(row[j], exponential((wide(row[j]) - highest) * scale) * share);
        std::memset(static_cast<void*>(row + seen), 0, (s - seen) * sizeof(T));
    }
}

// gradient (n, t, s) of the weights, in place, to that of the scores.
template <typename T>
void causal_softmax_backward(T* gradient, const T* weights, float scale, int64_t n, int64_t t, int64_t s) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n * t; i++) {
        T* g = gradient + i * s;
        const T* w = weights + i * s;
        int64_t seen = s - t + 1 + i % t;
        float along = 0;
#pragma omp simd reduction(+ : along)
        for (int64_t j = 0; j < seen; j++) along += wide(g[j]) * wide(w[j]);
#pragma omp simd
        for (int64_t j = 0; j < seen; j++) put(g[j], wide(w[j]) * (wide(g[j]) - along) * scale);
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

// ---- drawing a token -----------------------------------------------------------------------------------------------

// Whether a score is NaN or +inf; looked up in its bits, as the compiler may take numbers to be finite.
inline uint32_t astray(float x) {
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    return (bits & 0x7fffffff) >= 0x7f800000 && bits != 0xff800000;
}

// A score's share before normalising; exactly 0 where exp would underflow, and for -inf.
inline float share_of(float x, float highest, float inverse) {
    float power = (__builtin_fmaxf(x, -3.0e38f) - highest) * inverse;
    return power > -87.0f ? exponential(power) : 0.0f;
}

// The index of the first of m shares at which their running sum exceeds the target, or of the last positive one where
// rounding puts the target past the sum; the target becomes what is left of it there.
template <typename Share>
int64_t search(int64_t m, double& target, Share share) {
    double sum = 0, before = 0;
    int64_t found = 0;
    for (int64_t j = 0; j < m; j++) {
        double some = share(j);
        if (some <= 0) continue;
        found = j;
        before = sum;
        sum += some;
        if (sum > target) break;
    }
    target -= before;
    return found;
}

// scores (n, v) and uniforms (n,) -> tokens (n,) from the softmax at the inverse temperature, or the best where it is 0;
// and their log-probs (n,), at temperature 1 if the best. Token -1: the row is no distribution.
template <typename T>
void draw(const T* scores, const double* uniforms, float inverse, int64_t* tokens, float* logps, int64_t n, int64_t v) {
    constexpr int64_t B = 256;
    bool best = inverse == 0;
    float scale = best ? 1.0f : inverse;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < n; i++) {
        const T* row = scores + i * v;
        float highest = -3.0e38f;
        uint32_t wrong = 0;
#pragma omp simd reduction(max : highest) reduction(| : wrong)
        for (int64_t j = 0; j < v; j++) {
            highest = wide(row[j]) > highest ? wide(row[j]) : highest;
            wrong |= astray(wide(row[j]));
        }
        tokens[i] = -1;
        if (wrong || highest <= -3.0e38f) continue;
        int64_t blocks = (v + B - 1) / B;
        float* sums = static_cast<float*>(std::malloc(blocks * sizeof(float)));
        double total = 0;
        for (int64_t b = 0; b < blocks; b++) {
            int64_t end = (b + 1) * B < v ? (b + 1) * B : v;
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = b * B; j < end; j++) sum += share_of(wide(row[j]), highest, scale);
            sums[b] = sum;
            total += sum;
        }
        int64_t token = 0;
        if (best) {
            while (wide(row[token]) < highest) token++;
        } else {
            double target = uniforms[i] * total;
            int64_t block = search(blocks, target, [&](int64_t b) { return sums[b]; });
            int64_t width = v - block * B < B ? v - block * B : B;
            token = block * B + search(width, target, [&](int64_t j) {
                return share_of(wide(row[block * B + j]), highest, scale);
            });
        }
        std::free(sums);
        tokens[i] = token;
        logps[i] = (wide(row[token]) - highest) * scale - float(__builtin_log(total));
    }
}

// ---- attention of a decoding step ----------------------------------------------------------------------------------

typedef float lanes __attribute__((vector_size(64), aligned(4)));
typedef uint16_t halves __attribute__((vector_size(32), aligned(2)));
typedef uint32_t words __attribute__((vector_size(64)));
constexpr int64_t W = 16;

template <int N>
struct Count {
    static constexpr int value = N;
};

inline lanes load(const float* p) {
    lanes x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline lanes load(const bf16* p) {
    halves x;
    std::memcpy(&x, p, sizeof x);
    words y = __builtin_convertvector(x, words) << 16;
    lanes z;
    std::memcpy(&z, &y, sizeof z);
    return z;
}

// Columns [s, s + V * W) of the scores (R, most) of R queries (R, d) against keys^T, stored (blocks, d, W) so that they are
// read in the order they lie in. R * V sums at a time hide the latency of an addition.
template <int R, int V, typename T>
void score_some(const float* q, const T* keys, int64_t d, int64_t s, float* scores, int64_t most) {
    lanes sum[R][V] = {};
    for (int64_t j = 0; j < d; j++) {
        for (int v = 0; v < V; v++) {
            lanes key = load(keys + (s + v * W) * d + j * W);
            for (int r = 0; r < R; r++) sum[r][v] += q[r * d + j] * key;
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) std::memcpy(scores + r * most + s + v * W, &sum[r][v], sizeof(lanes));
}

template <int R, typename T>
void score(const float* q, const T* keys, int64_t d, int64_t count, float* scores, int64_t most) {
    int64_t s = 0;
    for (; s + 4 * W <= count; s += 4 * W) score_some<R, 4>(q, keys, d, s, scores, most);
    for (; s + 2 * W <= count; s += 2 * W) score_some<R, 2>(q, keys, d, s, scores, most);
    for (; s < count; s += W) score_some<R, 1>(q, keys, d, s, scores, most);
}

// Columns [j, j + V * W) of out (R, d) += weights (R, most) times values (count, d).
template <int R, int V, typename T>
void gather_some(const float* weights, int64_t most, const T* values, int64_t d, int64_t count, int64_t j, float* out) {
    lanes sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sum[r][v] = load(out + r * d + j + v * W);
    for (int64_t s = 0; s < count; s++) {
        for (int v = 0; v < V; v++) {
            lanes value = load(values + s * d + j + v * W);
            for (int r = 0; r < R; r++) sum[r][v] += weights[r * most + s] * value;
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) std::memcpy(out + r * d + j + v * W, &sum[r][v], sizeof(lanes));
}

template <int R, typename T>
void gather(const float* weights, int64_t most, const T* values, int64_t d, int64_t count, float* out) {
    int64_t j = 0;
    for (; j + 4 * W <= d; j += 4 * W) gather_some<R, 4>(weights, most, values, d, count, j, out);
    for (; j < d; j += W) gather_some<R, 1>(weights, most, values, d, count, j, out);
}

inline void normalise(const float* from, const float* weight, float eps, int64_t d, float* to) {
    float squares = 0;
    for (int64_t j = 0; j < d; j++) squares += from[j] * from[j];
    float scale = 1.0f / __builtin_sqrtf(squares / float(d) + eps);
    for (int64_t j = 0; j < d; j++) to[j] = from[j] * scale * weight[j];
}

// A head's projection (d,), normalised where a weight is given, and rotated.
template <typename T>
void prepare(const T* from, const float* weight, float eps, const float* c, const float* s, int64_t d, float* to) {
    int64_t half = d / 2;
    float* plain = static_cast<float*>(__builtin_alloca(d * sizeof(float)));
    for (int64_t j = 0; j < d; j++) plain[j] = wide(from[j]);
    if (weight) normalise(plain, weight, eps, d, plain);
    for (int64_t j = 0; j < half; j++) {
        float a = plain[j], b = plain[j + half];
        to[j] = a * c[j] - b * s[j];
        to[j + half] = b * c[j] + a * s[j];
    }
}

struct Shape {
    int64_t rows, heads, kv, d, capacity;  // capacity: columns of a completion's keys^T
};

template <int R, typename T>
void attend_some(const float* q, const T* prompt_keys, const T* prompt_values, int64_t prompt, const T* own_keys,
                 const T* own_values, int64_t own, int64_t d, float* scores, int64_t most, T* out) {
    int64_t padded = (prompt + W - 1) / W * W;  // own scores start at a whole vector
    score<R>(q, prompt_keys, d, prompt, scores, most);
    score<R>(q, own_keys, d, own, scores + padded, most);
    float* sums = static_cast<float*>(__builtin_alloca(R * d * sizeof(float)));
    std::memset(sums, 0, R * d * sizeof(float));
    float shares[R];
    for (int r = 0; r < R; r++) {
        float* row = scores + r * most;
        for (int64_t s = prompt; s < padded; s++) row[s] = -3.0e38f;
        float highest = -3.0e38f, sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t s = 0; s < padded + own; s++) highest = row[s] > highest ? row[s] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t s = 0; s < padded + own; s++) {
            row[s] = exponential(row[s] - highest);
            sum += row[s];
        }
        shares[r] = 1.0f / sum;
    }
    gather<R>(scores, most, prompt_values, d, prompt, sums);
    gather<R>(scores + padded, most, own_values, d, own, sums);
    for (int r = 0; r < R; r++)
        for (int64_t j = 0; j < d; j++) put(out[r * d + j], sums[r * d + j] * shares[r]);
}

// One step's attention: rotates the new keys and queries, appends keys and values, attends to prompt and completion.
//   qkv (rows, (heads + 2 kv) d); cosines and sines (rows, d / 2); out (rows, heads, d)
//   keys (cache rows, kv, capacity / W, d, W) and values (cache rows, kv, capacity, d): this layer's completions
//   lengths (rows,): tokens of a completion in the cache before this one
//   prompt_keys (rows,): addresses of the row's prompt's keys (kv, prompt_capacities / W, d, W), whose first prompts
//   (rows,) columns count; prompt_values (rows,): addresses of (kv, prompt_capacities, d)
template <typename T>
void attend(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* cosines,
            const float* sines, float scale, T* keys, T* values, const int64_t* lengths, const int64_t* prompt_keys,
            const int64_t* prompt_values, const int64_t* prompts, const int64_t* prompt_capacities, T* out, Shape z) {
    int64_t rep = z.heads / z.kv, d = z.d, width = (z.heads + 2 * z.kv) * d, most = z.capacity + W;
    int64_t longest = 0;
    for (int64_t i = 0; i < z.rows; i++) longest = prompts[i] > longest ? prompts[i] : longest;
    most += (longest + W - 1) / W * W;
#pragma omp parallel
    {
        float* scores = static_cast<float*>(std::malloc((4 * most + (rep + 1) * d) * sizeof(float)));
        float *q = scores + 4 * most, *k = q + rep * d;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < z.rows * z.kv; task++) {
            int64_t i = task / z.kv, h = task % z.kv, at = lengths[i];
            const T* row = qkv + i * width;
            const float *c = cosines + i * (d / 2), *s = sines + i * (d / 2);
            T* own_keys = keys + task * d * z.capacity;
            T* own_values = values + task * d * z.capacity;
            prepare(row + (z.heads + h) * d, k_norm, eps, c, s, d, k);
            for (int64_t j = 0; j < d; j++) put(own_keys[at / W * W * d + j * W + at % W], k[j]);
            std::memcpy(static_cast<void*>(own_values + at * d), row + (z.heads + z.kv + h) * d, d * sizeof(T));
            for (int64_t r = 0; r < rep; r++) {
                prepare(row + (h * rep + r) * d, q_norm, eps, c, s, d, q + r * d);
                for (int64_t j = 0; j < d; j++) q[r * d + j] *= scale;
            }
            int64_t stored = prompt_capacities[i] * d;
            const T* shared_keys = reinterpret_cast<const T*>(prompt_keys[i]) + h * stored;
            const T* shared_values = reinterpret_cast<const T*>(prompt_values[i]) + h * stored;
            T* to = out + (i * z.heads + h * rep) * d;
            auto some = [&](auto count, int64_t r) {
                attend_some<decltype(count)::value>(q + r * d, shared_keys, shared_values, prompts[i], own_keys, own_values,
                                                    at + 1, d, scores, most, to + r * d);
            };
            int64_t r = 0;
            for (; r + 4 <= rep; r += 4) some(Count<4>{}, r);
            if (rep - r == 3) some(Count<3>{}, r);
            if (rep - r == 2) some(Count<2>{}, r);
            if (rep - r == 1) some(Count<1>{}, r);
        }
        std::free(scores);
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                              \
    extern "C" void norm_##SUFFIX(float* x, const T* delta, const float* weight, float eps, T* out, float* scales,     \
                                  int64_t n, int64_t h) {                                                              \
        norm(x, delta, weight, eps, out, scales, n, h);                                                                \
    }                                                                                                                  \
    extern "C" void norm_backward_##SUFFIX(const T* g, const float* x, const float* weight, const float* scales,       \
                                           float* dx, float* dweight, int64_t n, int64_t h, int64_t parts) {           \
        norm_backward(g, x, weight, scales, dx, dweight, n, h, parts);                                                 \
    }                                                                                                                  \
    extern "C" void swiglu_##SUFFIX(const T* x, T* out, int64_t n, int64_t h) { swiglu(x, out, n, h); }                \
    extern "C" void swiglu_backward_##SUFFIX(const T* g, const T* x, T* dx, int64_t n, int64_t h) {                    \
        swiglu_backward(g, x, dx, n, h);                                                                               \
    }                                                                                                                  \
    extern "C" void rotary_##SUFFIX(const T* x, int64_t stride, const float* c, const float* s, float sign, T* out,    \
                                    int64_t n, int64_t heads, int64_t d) {                                             \
        rotary(x, stride, c, s, sign, out, n, heads, d);                                                               \
    }                                                                                                                  \
    extern "C" void causal_softmax_##SUFFIX(T* scores, float scale, int64_t n, int64_t t, int64_t s) {                 \
        causal_softmax(scores, scale, n, t, s);                                                                        \
    }                                                                                                                  \
    extern "C" void causal_softmax_backward_##SUFFIX(T* g, const T* weights, float scale, int64_t n, int64_t t,        \
                                                     int64_t s) {                                                      \
        causal_softmax_backward(g, weights, scale, n, t, s);                                                           \
    }                                                                                                                  \
    extern "C" void token_scores_##SUFFIX(T* scores, const int64_t* targets, float inverse, float* logps,              \
                                          float* entropies, int64_t n, int64_t v) {                                    \
        token_scores(scores, targets, inverse, logps, entropies, n, v);                                                \
    }                                                                                                                  \
    extern "C" void draw_##SUFFIX(const T* scores, const double* uniforms, float inverse, int64_t* tokens,             \
                                  float* logps, int64_t n, int64_t v) {                                                \
        draw(scores, uniforms, inverse, tokens, logps, n, v);                                                          \
    }                                                                                                                  \
    extern "C" void attend_##SUFFIX(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* c, \
                                    const float* s, float scale, T* keys, T* values, const int64_t* lengths,           \
                                    const int64_t* prompt_keys, const int64_t* prompt_values, const int64_t* prompts,  \
                                    const int64_t* prompt_capacities, T* out, int64_t rows, int64_t heads, int64_t kv,    \
                                    int64_t d, int64_t capacity) {                                                     \
        attend(qkv, q_norm, k_norm, eps, c, s, scale, keys, values, lengths, prompt_keys, prompt_values, prompts,      \
               prompt_capacities, out, Shape{rows, heads, kv, d, capacity});                                              \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
