// Products of few rows with a large weight, as decoding makes them.
//
// Formula    out = x weight^T + bias
// Shapes     x (n, in), weight (outs, in), bias (outs,) -> out (n, outs), for n from 1 to about 128
// Layout     The weight is copied once into panels of PANEL outputs (48 with AVX-512, 16 with AVX2), in the order it is
//            read in: a product streams it from memory while the rows stay in the cache:
//
//              weight (outs, in)            packed (panels, in, PANEL)
//              in ->                        one panel = all inputs of PANEL outputs
//            o a0 a1 a2 ..                  in fp32:  a0 b0 c0 ..  a1 b1 c1 ..  a2 b2 c2 ..
//            u b0 b1 b2 ..       ->                   |- input 0 | |- input 1 |
//            t c0 c1 c2 ..                  in pairs of bf16, (panels, in / 2, PANEL, 2):
//            s .                                      a0 a1 b0 b1 c0 c1 ..  a2 a3 b2 b3 c2 c3 ..
//                                                     |- inputs 0 and 1  |  |- inputs 2 and 3  |
//
//            Outputs past the last are zeros. A step multiplies one input (or pair) of up to ROWS rows, broadcast, by
//            VECTORS registers of outputs: ROWS * VECTORS sums stay in registers for the whole length of `in`.
// Numbers    In fp32 on every CPU, by weights in fp32 or bf16; in bf16 where AVX-512 multiplies pairs of it. Sums in fp32.
// Reference  x.double() @ weight.double().t() + bias (tests/engine/kernels/test_products.py); products.py says what is
//            done where this file has nothing, and measures whether it pays.
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

// ROWS * VECTORS sums and VECTORS weights fill the registers.
constexpr int VECTORS = REGISTERS == 32 ? 3 : 2, ROWS = REGISTERS == 32 ? 8 : 6;
constexpr int64_t PANEL = LANES * VECTORS;  // outputs computed together
constexpr int64_t CACHED = 128;             // rows that stay in the cache while panels pass by
constexpr int64_t FEW = 2;                  // blocks of rows for which bf16 is widened each time anew

// Of rows in T and panels in W, the bytes of a panel that a step takes: a number, or a pair of bf16, of each output.
template <typename T, typename W>
constexpr int64_t STEP = PANEL * (std::is_same_v<T, W> ? 4 : 2);

// The part of a panel that comes next which to fetch meanwhile: of each step's LINES, `from`, `from + by`, ...
template <int64_t STEP>
struct Next {
    static constexpr int64_t LINES = (STEP + 63) / 64;  // of the cache, that a step takes
    const char* panel;
    int from, by;
    void fetch(int64_t step) const {
        for (int64_t line = from; line < LINES; line += by) __builtin_prefetch(panel + step * STEP + line * 64, 0, 2);
    }
};

// A panel's outputs of R rows: x (R, in) times panel (in, PANEL), plus bias (PANEL,) -> the first `left` of them to out,
// rows `outs` apart.
template <int R, typename W, typename Next>
void some_rows(const float* x, int64_t in, const W* panel, const float* bias, Next next, float* out, int64_t outs,
               int64_t left) {
    lanes sums[R][VECTORS];
    for (int v = 0; v < VECTORS; v++)
        for (int r = 0; r < R; r++) sums[r][v] = load(bias + LANES * v);
    for (int64_t k = 0; k < in; k++) {
        lanes weights[VECTORS];
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) weights[v] = load(panel + k * PANEL + LANES * v);
        next.fetch(k);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) sums[r][v] += x[r * in + k] * weights[v];
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            float* to = out + r * outs + LANES * v;
            if (left >= LANES * (v + 1))
                save(to, sums[r][v]);
            else if (left > LANES * v)
                std::memcpy(to, &sums[r][v], (left - LANES * v) * sizeof(float));
        }
}

#ifdef PAIRS_OF_BF16
// The same of panels (in / 2, PANEL, 2).
template <int R, typename W, typename Next>
void some_rows(const bf16* x, int64_t in, const W* panel, const float* bias, Next next, bf16* out, int64_t outs,
               int64_t left) {
    __m512 sums[R][VECTORS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_loadu_ps(bias + 16 * v);
    for (int64_t k = 0; k < in / 2; k++) {
        __m512bh weights[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            weights[v] = (__m512bh)_mm512_loadu_si512(panel + (k * PANEL + 16 * v) * 2);
        next.fetch(k);
        for (int r = 0; r < R; r++) {
            int pair;
            std::memcpy(&pair, x + r * in + 2 * k, sizeof pair);
            __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
            for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], both, weights[v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS && left > 16 * v; v++) {
            __mmask16 kept = left >= 16 * (v + 1) ? 0xffff : (1u << (left - 16 * v)) - 1;
            _mm256_mask_storeu_epi16(out + r * outs + 16 * v, kept, (__m256i)_mm512_cvtneps_pbh(sums[r][v]));
        }
}
#endif

template <typename T, typename W, typename Next>
using SomeRows = void (*)(const T*, int64_t, const W*, const float*, Next, T*, int64_t, int64_t);
template <typename T, typename W, typename Next>
constexpr SomeRows<T, W, Next> BY_COUNT[] = {
    nullptr,
    some_rows<1, W, Next>, some_rows<2, W, Next>, some_rows<3, W, Next>, some_rows<4, W, Next>,
    some_rows<5, W, Next>, some_rows<6, W, Next>, some_rows<7, W, Next>, some_rows<8, W, Next>,
};

// A panel's outputs of all n rows, block by block, while the next panel comes from memory in as many steps of STEP bytes.
template <int64_t STEP, typename T, typename W>
void all_rows(const T* x, int64_t n, int64_t in, const W* panel, const float* bias, const char* next, T* out, int64_t outs,
              int64_t left) {
    using Fetched = Next<STEP>;
    int64_t blocks = (n + ROWS - 1) / ROWS;
    int lines = int(Fetched::LINES), by = blocks < lines ? int(blocks) : lines;
    for (int64_t b = 0; b < blocks; b++) {
        int64_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
        BY_COUNT<T, W, Fetched>[count](x + first * in, in, panel, bias, {next, b < by ? int(b) : lines, by},
                                       out + first * outs, outs, left);
    }
}

template <typename T, typename W>
void product(const T* x, const W* packed, const float* bias, T* out, int64_t n, int64_t in, int64_t outs) {
    int64_t panels = (outs + PANEL - 1) / PANEL;
    bool widened = !std::is_same_v<T, W> && n > FEW * ROWS;
#pragma omp parallel
    {
        std::vector<float> wide_panel(widened ? in * PANEL : 0);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) {
            const W* panel = packed + p * in * PANEL;
            const char* next = reinterpret_cast<const char*>(p + 1 < panels ? panel + in * PANEL : panel);
            const float* shift = bias + p * PANEL;
            T* to = out + p * PANEL;
            int64_t left = outs - p * PANEL;
            if constexpr (!std::is_same_v<T, W>) {
                if (widened) {
                    for (int64_t i = 0; i < in * PANEL; i++) wide_panel[i] = wide(panel[i]);
                    all_rows<STEP<T, W>>(x, n, in, wide_panel.data(), shift, next, to, outs, left);
                    continue;
                }
            }
            all_rows<STEP<T, W>>(x, n, in, panel, shift, next, to, outs, left);
        }
    }
}

// x (n, in) times packed (panels, in, PANEL), in pairs of bf16 (panels, in / 2, PANEL, 2), plus bias (panels * PANEL,) -> out
// (n, outs).
template <typename T, typename W>
void narrow_product(const T* x, const W* packed, const float* bias, T* out, int64_t n, int64_t in, int64_t outs) {
    for (int64_t first = 0; first < n; first += CACHED)
        product(x + first * in, packed, bias, out + first * outs, n - first < CACHED ? n - first : CACHED, in, outs);
}

// Where weight k of output `lane` of a panel lies in it.
template <bool PAIRS>
int64_t place(int64_t k, int64_t lane) {
    return PAIRS ? (k / 2 * PANEL + lane) * 2 + k % 2 : k * PANEL + lane;
}

// The weights at `rows` (outs,), addresses of `in` numbers each -> packed as above, outputs past the last being 0. After them
// come `more` columns of which the first is 1 and the others are 0.
template <bool PAIRS, typename S, typename W>
void lay_out(const S* const* rows, W* packed, int64_t outs, int64_t in, int64_t more) {
    constexpr int64_t SOME = 32;  // columns at a time, so that all lanes of some lines are written while they are cached
    int64_t panels = (outs + PANEL - 1) / PANEL, width = in + more;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        W* panel = packed + p * width * PANEL;
        for (int64_t from = 0; from < width; from += SOME)
            for (int64_t lane = 0; lane < PANEL; lane++) {
                const S* row = p * PANEL + lane < outs ? rows[p * PANEL + lane] : nullptr;
                int64_t end = from + SOME < width ? from + SOME : width;
                for (int64_t k = from; k < end; k++)
                    put(panel[place<PAIRS>(k, lane)], !row ? 0 : k < in ? wide(row[k]) : k == in);
            }
    }
}

}  // namespace

// Of products in T by weights stored in W. `halves` says that the weights to be laid out are in bf16, not in fp32.
#define EXPORT_LAY_OUT(SUFFIX, PAIRS, W)                                                                               \
    KERNEL void lay_out_##SUFFIX(const void* rows, W* packed, int64_t outs, int64_t in, int64_t more,                  \
                                 int64_t halves) {                                                                     \
        if (halves)                                                                                                    \
            lay_out<PAIRS>(static_cast<const bf16* const*>(rows), packed, outs, in, more);                             \
        else                                                                                                           \
            lay_out<PAIRS>(static_cast<const float* const*>(rows), packed, outs, in, more);                            \
    }
#define EXPORT(SUFFIX, T, W)                                                                                           \
    KERNEL int64_t narrow_panel_##SUFFIX() { return PANEL; }                                                           \
    KERNEL void narrow_product_##SUFFIX(const T* x, const W* packed, const float* bias, T* out, int64_t n,             \
                                        int64_t in, int64_t outs) {                                                    \
        narrow_product(x, packed, bias, out, n, in, outs);                                                             \
    }

EXPORT_LAY_OUT(fp32_fp32, false, float)
EXPORT_LAY_OUT(fp32_bf16, false, bf16)
EXPORT_LAY_OUT(bf16_bf16, true, bf16)
EXPORT(fp32_fp32, float, float)
EXPORT(fp32_bf16, float, bf16)

// 0 and nothing where there are no pairs of bf16. There, `in` is even.
#ifdef PAIRS_OF_BF16
EXPORT(bf16_bf16, bf16, bf16)
#else
KERNEL int64_t narrow_panel_bf16_bf16() { return 0; }
KERNEL void narrow_product_bf16_bf16(const bf16*, const bf16*, const float*, bf16*, int64_t, int64_t, int64_t) {}
#endif
