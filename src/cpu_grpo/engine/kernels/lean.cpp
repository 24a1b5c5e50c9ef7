// The passes of an update of weights held in bf16 (schemes/lean.py).
//
// Formula    squares:  rows_i = sum_k g_ik^2,  columns_k = sum_i g_ik^2
//            weighted: rows_i = sum_k g_ik^2 w_k
//            descend:  weight_ik = weight_ik * kept - g_ik * by_row_i * by_column_k, in bf16 rounded up or down at random
// Shapes     gradient and weights (outs, ins), rows and by_row (outs,), columns and by_column (ins,)
// Layout     Matrices row after row, as torch has them; each thread has rows of its own, and its own sums of columns.
// Numbers    Gradients and weights in fp32 or bf16, all else in fp32. Random bits are a hash of seed, row and column, so
//            that they do not depend on the threads.
// Reference  mean_squares, root_mean_square and descend in schemes/lean.py, by torch; tests/engine/schemes/test_lean.py
#include <cstdint>
#include <vector>

#include "numbers.h"

#ifdef _OPENMP
extern "C" int omp_get_num_threads(), omp_get_thread_num();  // not by omp.h, which not all compilers come with
#else
inline int omp_get_num_threads() { return 1; }
inline int omp_get_thread_num() { return 0; }
#endif

namespace {

// Sums of a matrix's squares over rows -> rows (outs,), and over columns -> columns (ins,).
template <typename T>
void squares(const T* gradient, float* rows, float* columns, int64_t outs, int64_t ins) {
    std::vector<float> parts;  // of the columns, a thread's own: added up in the threads' order, so that runs repeat
    int threads = 1;
#pragma omp parallel
    {
#pragma omp single
        {
            threads = omp_get_num_threads();
            parts.resize(threads * ins);
        }
        float* own = parts.data() + omp_get_thread_num() * ins;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < outs; i++) {
            float sum = 0;
            for (int64_t k = 0; k < ins; k++) {
                float square = wide(gradient[i * ins + k]) * wide(gradient[i * ins + k]);
                sum += square;
                own[k] += square;
            }
            rows[i] = sum;
        }
    }
    for (int64_t k = 0; k < ins; k++) {
        columns[k] = 0;
        for (int t = 0; t < threads; t++) columns[k] += parts[t * ins + k];
    }
}

// Sums over rows of a matrix's squares times weights (ins,) -> rows (outs,).
template <typename T>
void weighted_squares(const T* gradient, const float* weights, float* rows, int64_t outs, int64_t ins) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < outs; i++) {
        float sum = 0;
        for (int64_t k = 0; k < ins; k++) sum += wide(gradient[i * ins + k]) * wide(gradient[i * ins + k]) * weights[k];
        rows[i] = sum;
    }
}

// Random bits for a number and a seed: the last mixing of MurmurHash3 (Appleby, public domain).
inline uint32_t random_bits(uint32_t number, uint32_t seed) {
    uint32_t bits = number * 0x9e3779b9u + seed;
    bits = (bits ^ (bits >> 16)) * 0x85ebca6bu;
    bits = (bits ^ (bits >> 13)) * 0xc2b2ae35u;
    return bits ^ (bits >> 16);
}

inline void put_at_random(float& to, float x, uint32_t, uint32_t) { to = x; }
inline void put_at_random(bf16& to, float x, uint32_t number, uint32_t seed) {
    to = bf16((__builtin_bit_cast(uint32_t, x) + (random_bits(number, seed) & 0xffff)) >> 16);
}

// weights * kept - gradient * by_row (outs,) * by_column (ins,), in place; bf16 is rounded up or down at random.
template <typename T>
void descend(T* weights, const T* gradient, const float* by_row, const float* by_column, float kept, uint64_t seed,
             int64_t outs, int64_t ins) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < outs; i++) {
        uint32_t own = random_bits(uint32_t(i), uint32_t(seed)) ^ uint32_t(seed >> 32);  // a row's seed
        T* row = weights + i * ins;
        for (int64_t k = 0; k < ins; k++)
            put_at_random(row[k], wide(row[k]) * kept - wide(gradient[i * ins + k]) * by_row[i] * by_column[k],
                          uint32_t(k), own);
    }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL void squares_##SUFFIX(const T* gradient, float* rows, float* columns, int64_t outs, int64_t ins) {          \
        squares(gradient, rows, columns, outs, ins);                                                                   \
    }                                                                                                                  \
    KERNEL void weighted_squares_##SUFFIX(const T* gradient, const float* weights, float* rows, int64_t outs,          \
                                          int64_t ins) {                                                               \
        weighted_squares(gradient, weights, rows, outs, ins);                                                          \
    }                                                                                                                  \
    KERNEL void descend_##SUFFIX(T* weights, const T* gradient, const float* by_row, const float* by_column,           \
                                 float kept, int64_t seed, int64_t outs, int64_t ins) {                                \
        descend(weights, gradient, by_row, by_column, kept, seed, outs, ins);                                          \
    }

EXPORT(float, fp32)
EXPORT(bf16, bf16)
