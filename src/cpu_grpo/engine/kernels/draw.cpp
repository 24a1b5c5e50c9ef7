// Drawing a token from scores over a vocabulary by inverting the cumulative distribution.
//
// Formula    p = softmax(scores * inverse temperature); token = the first t with p_0 + ... + p_t > uniform;
//            logp = log p_token. At inverse temperature 0 the token is the first of the best, its logp at temperature 1
// Shapes     scores (n, v), uniforms (n,) in fp64 -> tokens (n,), logps (n,); token -1 where the row is no distribution
// Layout     Two levels: sums of blocks of 256 shares are searched first, then the shares of one block.
// Numbers    Shares in fp32, sums over blocks in fp64.
// Reference  rollout/sampling.py's `_draw`, by torch; tests/engine/rollout/test_sampling.py
#include <cstdint>
#include <cstdlib>

#include "numbers.h"

namespace {

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

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL void draw_##SUFFIX(const T* scores, const double* uniforms, float inverse, int64_t* tokens,                 \
                              float* logps, int64_t n, int64_t v) {                                                    \
        draw(scores, uniforms, inverse, tokens, logps, n, v);                                                          \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
