// Attention of a decoding step: every row sees its group's prompt, stored once, and its own completion so far.
//
// Formula    out = softmax(scale * rope(norm(q)) [prompt keys, own keys]^T) [prompt values, own values], in each head;
//            before that the row's new key (normalised, rotated) and value are appended to its own
// Shapes     qkv (rows, (heads + 2 kv) d): the new tokens' queries, keys and values -> out (rows, heads, d)
// Layout     `store` and `attend` keep keys and values of a head in blocks of W tokens (the numbers in a register):
//
//              keys   (capacity / W, d / PAIR, W, PAIR)   a register = one feature (pair) of W tokens: q times it adds up
//                                                         W scores at a time
//              values (capacity / PAIR, d, PAIR)          a register = W features of one token (pair): a weight times it
//                                                         adds up W features at a time
//
//            PAIR is 2 where AVX-512 multiplies pairs of bf16, else 1. A task is one row and one key head: the queries
//            that share this head (heads / kv of them) go over its keys together, four at most.
// Numbers    Stored in fp32 or bf16; scores, softmax and sums in fp32.
// Reference  Step._composed in rollout/attention.py, by torch; both against transformers' completions and log-probs in
//            tests/engine/rollout/test_engine.py and test_engine_logps.py
#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace {

// W numbers are a register; SUMS registers of sums leave room for what is added to them.
constexpr int64_t W = LANES, SUMS = REGISTERS == 32 ? 16 : 12;

// Where the CPU multiplies and adds pairs of bf16, numbers whose products are summed lie next to each other: two features
// of a key, two positions of a feature of a value. `Factor` is what such a stored number is multiplied by.
template <typename T>
constexpr int64_t PAIR = 1;
template <typename T>
struct FactorOf {
    using type = float;
};
#if defined(__AVX512BF16__)
template <>
constexpr int64_t PAIR<bf16> = 2;
template <>
struct FactorOf<bf16> {
    using type = bf16;
};
#endif
template <typename T>
using Factor = typename FactorOf<T>::type;

// Where feature j of position s is stored: among keys (capacity / W, d / PAIR, W, PAIR) and values (capacity / PAIR, d, PAIR).
template <typename T>
int64_t key_place(int64_t s, int64_t j, int64_t d) {
    return s / W * W * d + j / PAIR<T> * W * PAIR<T> + s % W * PAIR<T> + j % PAIR<T>;
}
template <typename T>
int64_t value_place(int64_t s, int64_t j, int64_t d) {
    return (s / PAIR<T> * d + j) * PAIR<T> + s % PAIR<T>;
}

template <int N>
struct Count {
    static constexpr int value = N;
};

// sums (R, V vectors) += factors (R, `apart` apart), PAIR of each, times PAIR * V vectors of stored numbers.
template <int R, int V, typename T>
inline void multiply(const Factor<T>* factors, int64_t apart, const T* stored, int64_t next, lanes (&sums)[R][V]) {
#if defined(__AVX512BF16__)
    if constexpr (PAIR<T> == 2) {
        for (int v = 0; v < V; v++) {
            __m512bh numbers = (__m512bh)_mm512_loadu_si512(stored + v * next);
            for (int r = 0; r < R; r++) {
                int pair;
                std::memcpy(&pair, factors + r * apart, sizeof pair);
                sums[r][v] = (lanes)_mm512_dpbf16_ps((__m512)sums[r][v], (__m512bh)_mm512_set1_epi32(pair), numbers);
            }
        }
        return;
    }
#endif
    for (int v = 0; v < V; v++) {
        lanes numbers = load(stored + v * next);
        for (int r = 0; r < R; r++) sums[r][v] += wide(factors[r * apart]) * numbers;
    }
}

// Columns [s, s + V * W) of the scores (R, most) of R queries (R, d) against keys. R * V sums at a time hide the latency
// of an addition.
template <int R, int V, typename T>
void score_some(const Factor<T>* q, const T* keys, int64_t d, int64_t s, float* scores, int64_t most) {
    lanes sums[R][V] = {};
    for (int64_t j = 0; j < d; j += PAIR<T>) multiply<R, V>(q + j, d, keys + s * d + j * W, W * d, sums);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) save(scores + r * most + s + v * W, sums[r][v]);
}

template <int R, typename T>
void score(const Factor<T>* q, const T* keys, int64_t d, int64_t count, float* scores, int64_t most) {
    constexpr int V = SUMS / R < 4 ? SUMS / R : 4;
    int64_t s = 0;
    for (; s + V * W <= count; s += V * W) score_some<R, V>(q, keys, d, s, scores, most);
    for (; s + 2 * W <= count; s += 2 * W) score_some<R, 2>(q, keys, d, s, scores, most);
    for (; s < count; s += W) score_some<R, 1>(q, keys, d, s, scores, most);
}

// Columns [j, j + V * W) of out (R, d) += weights (R, most) times values; weights past `count` are 0 up to a whole pair.
template <int R, int V, typename T>
void gather_some(const Factor<T>* weights, int64_t most, const T* values, int64_t d, int64_t count, int64_t j, float* out) {
    lanes sums[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) sums[r][v] = load(out + r * d + j + v * W);
    for (int64_t s = 0; s < count; s += PAIR<T>)
        multiply<R, V>(weights + s, most, values + s * d + j * PAIR<T>, W * PAIR<T>, sums);
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) save(out + r * d + j + v * W, sums[r][v]);
}

template <int R, typename T>
void gather(const Factor<T>* weights, int64_t most, const T* values, int64_t d, int64_t count, float* out) {
    constexpr int V = SUMS / R < 4 ? SUMS / R : 4;
    int64_t j = 0;
    for (; j + V * W <= d; j += V * W) gather_some<R, V>(weights, most, values, d, count, j, out);
    for (; j < d; j += W) gather_some<R, 1>(weights, most, values, d, count, j, out);
}

// (n, tokens, d) keys and values to their places among (n, capacity, d).
template <typename T>
void store(const T* keys, const T* values, T* stored_keys, T* stored_values, int64_t n, int64_t tokens, int64_t capacity,
           int64_t d) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++)
        for (int64_t s = 0; s < tokens; s++)
            for (int64_t j = 0; j < d; j++) {
                stored_keys[i * capacity * d + key_place<T>(s, j, d)] = keys[(i * tokens + s) * d + j];
                stored_values[i * capacity * d + value_place<T>(s, j, d)] = values[(i * tokens + s) * d + j];
            }
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
    int64_t rows, heads, kv, d, capacity;  // capacity: tokens that a completion has room for
};

template <int R, typename T>
void attend_some(const Factor<T>* q, const T* prompt_keys, const T* prompt_values, int64_t prompt, const T* own_keys,
                 const T* own_values, int64_t own, int64_t d, float* scores, Factor<T>* weights, int64_t most, T* out) {
    int64_t padded = (prompt + W - 1) / W * W;  // own scores start at a whole vector
    score<R>(q, prompt_keys, d, prompt, scores, most);
    score<R>(q, own_keys, d, own, scores + padded, most);
    float* sums = static_cast<float*>(__builtin_alloca(R * d * sizeof(float)));
    std::memset(sums, 0, R * d * sizeof(float));
    float shares[R];
    for (int r = 0; r < R; r++) {
        float* row = scores + r * most;
        Factor<T>* kept = weights + r * most;
        for (int64_t s = prompt; s < padded; s++) row[s] = -3.0e38f;
        float highest = -3.0e38f, sum = 0;
#pragma omp simd reduction(max : highest)
        for (int64_t s = 0; s < padded + own; s++) highest = row[s] > highest ? row[s] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t s = 0; s < padded + own; s++) {
            float weight = exponential(row[s] - highest);
            put(kept[s], weight);
            sum += weight;
        }
        put(kept[padded + own], 0.0f);
        shares[r] = 1.0f / sum;
    }
    gather<R>(weights, most, prompt_values, d, prompt, sums);
    gather<R>(weights + padded, most, own_values, d, own, sums);
    for (int r = 0; r < R; r++)
        for (int64_t j = 0; j < d; j++) put(out[r * d + j], sums[r * d + j] * shares[r]);
}

// One step's attention: rotates the new keys and queries, appends keys and values, attends to prompt and completion.
//   qkv (rows, (heads + 2 kv) d); cosines and sines (rows, d / 2); out (rows, heads, d)
//   keys and values (cache rows, kv, capacity, d) as stored: this layer's completions
//   lengths (rows,): tokens of a completion in the cache before this one
//   prompt_keys and prompt_values (rows,): addresses of the row's prompt's (kv, prompt_capacities, d) as stored in the first
//   layer, and prompt_layer (rows,) bytes further on in each next one; the first prompts (rows,) tokens count
template <typename T>
void attend(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* cosines,
            const float* sines, float scale, T* keys, T* values, const int64_t* lengths, const int64_t* prompt_keys,
            const int64_t* prompt_values, const int64_t* prompt_layer, int64_t layer, const int64_t* prompts,
            const int64_t* prompt_capacities, T* out, Shape z) {
    int64_t rep = z.heads / z.kv, d = z.d, width = (z.heads + 2 * z.kv) * d, most = z.capacity + 2 * W;
    int64_t longest = 0;
    for (int64_t i = 0; i < z.rows; i++) longest = prompts[i] > longest ? prompts[i] : longest;
    most += (longest + W - 1) / W * W;
#pragma omp parallel
    {
        float* scores = static_cast<float*>(std::malloc((8 * most + 2 * (rep + 1) * d) * sizeof(float)));
        float* k = scores + 4 * most;
        Factor<T>* weights = reinterpret_cast<Factor<T>*>(k + d);
        Factor<T>* q = weights + 4 * most;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < z.rows * z.kv; task++) {
            int64_t i = task / z.kv, h = task % z.kv, at = lengths[i];
            const T* row = qkv + i * width;
            const float *c = cosines + i * (d / 2), *s = sines + i * (d / 2);
            T* own_keys = keys + task * d * z.capacity;
            T* own_values = values + task * d * z.capacity;
            const T* value = row + (z.heads + z.kv + h) * d;
            prepare(row + (z.heads + h) * d, k_norm, eps, c, s, d, k);
            for (int64_t j = 0; j < d; j++) {
                put(own_keys[key_place<T>(at, j, d)], k[j]);
                own_values[value_place<T>(at, j, d)] = value[j];
            }
            for (int64_t r = 0; r < rep; r++) {
                prepare(row + (h * rep + r) * d, q_norm, eps, c, s, d, k);
                for (int64_t j = 0; j < d; j++) put(q[r * d + j], k[j] * scale);
            }
            int64_t stored = prompt_capacities[i] * d, further = layer * prompt_layer[i];
            const T* shared_keys = reinterpret_cast<const T*>(prompt_keys[i] + further) + h * stored;
            const T* shared_values = reinterpret_cast<const T*>(prompt_values[i] + further) + h * stored;
            T* to = out + (i * z.heads + h * rep) * d;
            auto some = [&](auto count, int64_t r) {
                attend_some<decltype(count)::value>(q + r * d, shared_keys, shared_values, prompts[i], own_keys, own_values,
                                                    at + 1, d, scores, weights, most, to + r * d);
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
    KERNEL void store_##SUFFIX(const T* keys, const T* values, T* stored_keys, T* stored_values, int64_t n,            \
                               int64_t tokens, int64_t capacity, int64_t d) {                                          \
        store(keys, values, stored_keys, stored_values, n, tokens, capacity, d);                                       \
    }                                                                                                                  \
    KERNEL void attend_##SUFFIX(const T* qkv, const float* q_norm, const float* k_norm, float eps, const float* c,     \
                                const float* s, float scale, T* keys, T* values, const int64_t* lengths,               \
                                const int64_t* prompt_keys, const int64_t* prompt_values,                              \
                                const int64_t* prompt_layer, int64_t layer, const int64_t* prompts,                    \
                                const int64_t* prompt_capacities, T* out, int64_t rows, int64_t heads, int64_t kv,     \
                                int64_t d, int64_t capacity) {                                                         \
        attend(qkv, q_norm, k_norm, eps, c, s, scale, keys, values, lengths, prompt_keys, prompt_values, prompt_layer, \
               layer, prompts, prompt_capacities, out, Shape{rows, heads, kv, d, capacity});                           \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
