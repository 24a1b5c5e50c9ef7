// Products of few rows with a weight where it lies: no copy, and at the memory's speed for up to about 16 rows. For more,
// products.cpp with its copy is up to twice as fast: sums along the input leave more to load.
//
// Formula    out = x weight^T + bias + level, rounded once
// Shapes     x (n, in), weight (size, in), bias (size,) or null, level (n,) or null -> out (n, size), its rows `outs` apart
// Layout     Everything as torch has it, row after row. A block is ROWS rows times OUTS outputs, whose sums along `in` stay
//            in registers, a register holding the sums of every LANES-th input; CACHED inputs at a time.
// Numbers    In fp32 by weights in fp32 or bf16, in bf16 by weights in bf16. Sums in fp32.
// Reference  products.add_product, by torch; tests/engine/kernels/test_products.py
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

// ROWS * OUTS sums and OUTS weights fill the registers.
constexpr int ROWS = REGISTERS == 32 ? 6 : 4, OUTS = REGISTERS == 32 ? 4 : 3;
constexpr int64_t CACHED = 1024;  // of the input at a time: a block's rows and weights stay in the nearest cache

// Adds what each of the vectors comes to.
template <int O>
inline void add_sums(const lanes* x, float* totals) {
#ifdef __AVX512F__
    if constexpr (O == 4) {  // of all four together: a third of the work
        auto joined = [](__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
        __m512 ac = joined((__m512)x[0], (__m512)x[2]), bd = joined((__m512)x[1], (__m512)x[3]);
        __m512 all = joined(ac, bd);  // a, b, c, d in each quarter
        __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
        __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
        _mm_storeu_ps(totals, _mm_add_ps(_mm_loadu_ps(totals), quarter));
        return;
    }
#endif
    for (int o = 0; o < O; o++) {
        float total = 0;
        for (int i = 0; i < LANES; i++) total += x[o][i];
        totals[o] += total;
    }
}

// What a step takes of a row of T and of a weight in W, and their product.
template <typename T, typename W>
struct Step {
    static constexpr int64_t NUMBERS = LANES;
    static lanes row(const T* from) { return load(from); }
    static lanes weight(const W* from) { return load(from); }
    static void add(lanes& total, lanes row, lanes weight) { total += row * weight; }
};

#ifdef PAIRS_OF_BF16
template <>
struct Step<bf16, bf16> {
    static constexpr int64_t NUMBERS = 32;
    static __m512bh row(const bf16* from) { return (__m512bh)_mm512_loadu_si512(from); }
    static __m512bh weight(const bf16* from) { return row(from); }
    static void add(lanes& total, __m512bh row, __m512bh weight) {
        total = (lanes)_mm512_dpbf16_ps((__m512)total, row, weight);
    }
};
#endif

// The weights that come next, which to fetch meanwhile: of OUTS outputs' those of `from`, `from + by`, ...
template <typename W>
struct Next {
    const W* weights;
    int from, by;
    void fetch(int64_t in, int64_t k) const {
        for (int o = from; o < OUTS; o += by) __builtin_prefetch(weights + o * in + k, 0, 2);
    }
};

// R rows of x, `in` apart, times O outputs' weights, `in` apart, of which `length` numbers: added to totals, rows OUTS apart.
template <int R, int O, typename T, typename W>
void block(const T* x, const W* weights, int64_t in, int64_t length, Next<W> next, float* totals) {
    using Some = Step<T, W>;
    lanes sums[R][O] = {};
    int64_t k = 0;
    for (; k + Some::NUMBERS <= length; k += Some::NUMBERS) {
        decltype(Some::weight(weights)) some[O];
#pragma GCC unroll 4
        for (int o = 0; o < O; o++) some[o] = Some::weight(weights + o * in + k);
        next.fetch(in, k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            auto row = Some::row(x + r * in + k);
#pragma GCC unroll 4
            for (int o = 0; o < O; o++) Some::add(sums[r][o], row, some[o]);
        }
    }
    for (int r = 0; r < R; r++) {
        add_sums<O>(sums[r], totals + r * OUTS);
        for (int o = 0; o < O; o++)
            for (int64_t rest = k; rest < length; rest++)
                totals[r * OUTS + o] += wide(x[r * in + rest]) * wide(weights[o * in + rest]);
    }
}

template <typename T, typename W>
using Block = void (*)(const T*, const W*, int64_t, int64_t, Next<W>, float*);
template <int O, typename T, typename W>
constexpr Block<T, W> BY_COUNT[] = {nullptr,           block<1, O, T, W>, block<2, O, T, W>, block<3, O, T, W>,
                                    block<4, O, T, W>, block<5, O, T, W>, block<6, O, T, W>};

// The same of n rows.
template <int O, typename T, typename W>
void all_rows(const T* x, int64_t n, const W* weights, int64_t in, int64_t length, const W* next, float* totals) {
    int64_t blocks = (n + ROWS - 1) / ROWS;
    int by = blocks < OUTS ? int(blocks) : OUTS;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
        Next<W> some = {next, next && b < by ? int(b) : OUTS, by};
        BY_COUNT<O, T, W>[count](x + first * in, weights, in, length, some, totals + first * OUTS);
    }
}

// x (n, in) times weights (size, in), plus bias (size,) and level (n,) where there are such -> out (n, size), rows `outs` apart;
// rounded once, at the end.
template <typename T, typename W>
void row_product(const T* x, const W* weights, const float* bias, const float* level, T* out, int64_t n, int64_t in,
                 int64_t size, int64_t outs) {
    int64_t blocks = (size + OUTS - 1) / OUTS;
#pragma omp parallel
    {
        std::vector<float> totals(n * OUTS);
#pragma omp for schedule(static)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = b * OUTS, count = first + OUTS < size ? OUTS : size - first;
            for (int64_t r = 0; r < n; r++)
                for (int64_t o = 0; o < count; o++)
                    totals[r * OUTS + o] = (bias ? bias[first + o] : 0) + (level ? level[r] : 0);
            for (int64_t k = 0; k < in; k += CACHED) {
                const W* some = weights + first * in + k;
                int64_t length = in - k < CACHED ? in - k : CACHED;
                const W* next = k + CACHED < in ? some + CACHED : first + 2 * OUTS <= size ? some + OUTS * in - k : nullptr;
                if (count == OUTS)
                    all_rows<OUTS>(x + k, n, some, in, length, next, totals.data());
                else
                    for (int64_t o = 0; o < count; o++)
                        all_rows<1>(x + k, n, some + o * in, in, length, {}, totals.data() + o);
            }
            for (int64_t r = 0; r < n; r++)
                for (int64_t o = 0; o < count; o++) put(out[r * outs + first + o], totals[r * OUTS + o]);
        }
    }
}

}  // namespace

#define EXPORT(SUFFIX, T, W)                                                                                           \
    KERNEL void row_product_##SUFFIX(const T* x, const W* weights, const float* bias, const float* level, T* out,      \
                                     int64_t n, int64_t in, int64_t size, int64_t outs) {                              \
        row_product(x, weights, bias, level, out, n, in, size, outs);                                                  \
    }

EXPORT(fp32_fp32, float, float)
EXPORT(fp32_bf16, float, bf16)
EXPORT(bf16_bf16, bf16, bf16)
