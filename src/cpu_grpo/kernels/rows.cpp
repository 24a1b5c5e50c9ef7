// Products of few rows in fp32 with a weight where it lies, (outs, in) in fp32 or bf16: no copy, and at the memory's speed for up
// to about 16 rows. For more, products.cpp with its copy is up to twice as fast: sums along the input leave more to load.
#include <cstdint>

#include "vectors.h"

namespace {

// ROWS * OUTS sums and OUTS weights fill the registers.
constexpr int ROWS = REGISTERS == 32 ? 6 : 4, OUTS = REGISTERS == 32 ? 4 : 3;
constexpr int64_t CACHED = 1024;  // of the input at a time: a block's rows and weights stay in the nearest cache

inline float sum(lanes x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

// R rows of x, `in` apart, times O outputs' weights, `in` apart, of which `length` numbers: added to out, rows `outs` apart.
template <int R, int O, typename W>
void block(const float* x, const W* weights, int64_t in, int64_t length, float* out, int64_t outs) {
    lanes sums[R][O] = {};
    int64_t k = 0;
    for (; k + LANES <= length; k += LANES) {
        lanes some[O];
#pragma GCC unroll 4
        for (int o = 0; o < O; o++) some[o] = load(weights + o * in + k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            lanes row = load(x + r * in + k);
#pragma GCC unroll 4
            for (int o = 0; o < O; o++) sums[r][o] += row * some[o];
        }
    }
    for (int r = 0; r < R; r++)
        for (int o = 0; o < O; o++) {
            float total = sum(sums[r][o]);
            for (int64_t rest = k; rest < length; rest++) total += x[r * in + rest] * wide(weights[o * in + rest]);
            out[r * outs + o] += total;
        }
}

// The same of n rows.
template <int O, typename W>
void all_rows(const float* x, int64_t n, const W* weights, int64_t in, int64_t length, float* out, int64_t outs) {
    int64_t r = 0;
    for (; r + ROWS <= n; r += ROWS) block<ROWS, O>(x + r * in, weights, in, length, out + r * outs, outs);
    for (; r + 2 <= n; r += 2) block<2, O>(x + r * in, weights, in, length, out + r * outs, outs);
    if (r < n) block<1, O>(x + r * in, weights, in, length, out + r * outs, outs);
}

// x (n, in) times weights (size, in), plus bias (size,) if there is one -> out (n, size), rows `outs` apart.
template <typename W>
void row_product(const float* x, const W* weights, const float* bias, float* out, int64_t n, int64_t in, int64_t size,
                 int64_t outs) {
    int64_t blocks = (size + OUTS - 1) / OUTS;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = b * OUTS, last = first + OUTS < size ? first + OUTS : size;
        for (int64_t r = 0; r < n; r++)
            for (int64_t o = first; o < last; o++) out[r * outs + o] = bias ? bias[o] : 0;
        for (int64_t k = 0; k < in; k += CACHED) {
            int64_t length = in - k < CACHED ? in - k : CACHED;
            if (last - first == OUTS)
                all_rows<OUTS>(x + k, n, weights + first * in + k, in, length, out + first, outs);
            else
                for (int64_t o = first; o < last; o++)
                    all_rows<1>(x + k, n, weights + o * in + k, in, length, out + o, outs);
        }
    }
}

}  // namespace

extern "C" void row_product_fp32_fp32(const float* x, const float* weights, const float* bias, float* out, int64_t n, int64_t in,
                                      int64_t size, int64_t outs) {
    row_product(x, weights, bias, out, n, in, size, outs);
}
extern "C" void row_product_fp32_bf16(const float* x, const bf16* weights, const float* bias, float* out, int64_t n, int64_t in,
                                      int64_t size, int64_t outs) {
    row_product(x, weights, bias, out, n, in, size, outs);
}
