// Products of few rows with a large weight in 8 bits: half the bytes of bf16, and up to twice the products an instruction.
//
// Formula    out = rounded(x) rounded(weight)^T + bias; rounded(v) is a scale times integers from -127 to 127, and the scale of
//            each GROUP inputs of a row, of x as of the weight, is their largest magnitude / 127
// Shapes     x (n, in), weight (outs, in), bias (outs,) -> out (n, outs), for n from 1 to about 128
// Layout     In panels of PANEL outputs, as in products.cpp. Of each GROUP inputs first come the panel's scales, then four
//            inputs of each output side by side:
//
//              packed (panels, groups, BLOCK)     BLOCK bytes: scales (PANEL,) fp32, integers (GROUP / 4, PANEL, 4)
//                                                              a b c ..              a0 a1 a2 a3 b0 b1 b2 b3 ..  a4 a5 ..
//
//            Outputs and inputs past the last are zeros.
// Numbers    A group's products are summed up exactly, in int32, and the groups in fp32.
// Reference  the formula in double precision; tests/engine/kernels/test_int8.py
//
// As llama.cpp's Q8_0, in groups twice as long. With one scale for a whole row of x its few outliers would set it, and log-probs
// would be off two to three times as far (docs/log.md).
#include <cstdint>
#include <cstring>
#include <vector>

#include "dot.h"

#ifdef DOT

namespace {

constexpr int VECTORS = REGISTERS == 32 ? 3 : 2, ROWS = REGISTERS == 32 ? 8 : 4;
constexpr int64_t PANEL = LANES * VECTORS;  // outputs computed together
constexpr int64_t GROUP = 64, WORD = 4, STEPS = GROUP / WORD;
constexpr int64_t BLOCK = PANEL * (sizeof(float) + GROUP);
constexpr float MOST = 127;

// A row's `count` numbers -> GROUP integers, zeros past `count`; returns their scale.
template <typename T>
float round_group(const T* from, int64_t count, int8_t* integers) {
    float values[GROUP] = {}, highest = 0;
    for (int64_t k = 0; k < count; k++) values[k] = wide(from[k]);
#pragma omp simd reduction(max : highest)
    for (int64_t k = 0; k < GROUP; k++) {
        float magnitude = __builtin_fabsf(values[k]);
        highest = magnitude > highest ? magnitude : highest;
    }
    float by = highest > 0 ? MOST / highest : 0;
#pragma omp simd
    for (int64_t k = 0; k < GROUP; k++) integers[k] = int8_t(int32_t(__builtin_rintf(values[k] * by)));
    return highest / MOST;
}

// Rows of x as integers: of each group its scale, what sums start at, and GROUP integers.
struct Rounded {
    int64_t groups;
    std::vector<int8_t> integers;  // (n, groups, GROUP)
    std::vector<float> scales;     // (n, groups)
    std::vector<int32_t> starts;   // (n, groups)

    Rounded(int64_t n, int64_t in)
        : groups((in + GROUP - 1) / GROUP), integers(n * groups * GROUP), scales(n * groups), starts(n * groups) {}

    template <typename T>
    void round(const T* x, int64_t n, int64_t in) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * groups; i++) {
            int64_t from = i % groups * GROUP, count = in - from < GROUP ? in - from : GROUP;
            int8_t* to = integers.data() + i * GROUP;
            scales[i] = round_group(x + i / groups * in + from, count, to);
            int32_t sum = 0;
            for (int64_t k = 0; k < GROUP; k++) sum += to[k];
            starts[i] = -OFFSET * sum;
        }
    }
};

// A panel's outputs of R rows from `first` on, plus bias (PANEL,) -> the first `left` of them to out, rows `outs` apart.
// Meanwhile what lies `ahead` bytes from the panel is fetched, if that is not 0.
template <int R, typename T>
void some_rows(const Rounded& x, int64_t first, const int8_t* panel, const float* bias, int64_t ahead, T* out, int64_t outs,
               int64_t left) {
    int64_t groups = x.groups;
    const int8_t* integers = x.integers.data() + first * groups * GROUP;
    const float* scales = x.scales.data() + first * groups;
    const int32_t* starts = x.starts.data() + first * groups;
    lanes sums[R][VECTORS];
    for (int v = 0; v < VECTORS; v++)
        for (int r = 0; r < R; r++) sums[r][v] = load(bias + LANES * v);
    for (int64_t g = 0; g < groups; g++) {
        const int8_t* block = panel + g * BLOCK;
        ints found[R][VECTORS];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) found[r][v] = ints{} + starts[r * groups + g];
        for (int64_t k = 0; k < STEPS; k++) {
            ints weights[VECTORS];
#pragma GCC unroll 3
            for (int v = 0; v < VECTORS; v++) {
                const int8_t* at = block + PANEL * sizeof(float) + (k * PANEL + LANES * v) * WORD;
                std::memcpy(&weights[v], at, sizeof(ints));
                if (ahead) __builtin_prefetch(at + ahead, 0, 2);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                int32_t word;
                std::memcpy(&word, integers + (r * groups + g) * GROUP + k * WORD, WORD);
#pragma GCC unroll 3
                for (int v = 0; v < VECTORS; v++) found[r][v] = dot(found[r][v], weights[v], ints{} + word);
            }
        }
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            lanes scale = load(reinterpret_cast<const float*>(block) + LANES * v);
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                sums[r][v] += __builtin_convertvector(found[r][v], lanes) * (scale * scales[r * groups + g]);
        }
    }
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
        for (int v = 0; v < VECTORS; v++) {
            T rounded[LANES], *to = out + r * outs + LANES * v;
            for (int i = 0; i < LANES; i++) put(rounded[i], sums[r][v][i]);
            if (left >= LANES * (v + 1))
                std::memcpy(to, rounded, sizeof rounded);
            else if (left > LANES * v)
                std::memcpy(to, rounded, (left - LANES * v) * sizeof(T));
        }
}

template <typename T>
using SomeRows = void (*)(const Rounded&, int64_t, const int8_t*, const float*, int64_t, T*, int64_t, int64_t);
template <typename T>
constexpr SomeRows<T> BY_COUNT[] = {
    nullptr,         some_rows<1, T>, some_rows<2, T>, some_rows<3, T>, some_rows<4, T>,
    some_rows<5, T>, some_rows<6, T>, some_rows<7, T>, some_rows<8, T>,
};

// x (n, in) times packed (panels, groups, BLOCK), plus bias (panels * PANEL,) -> out (n, outs).
template <typename T>
void product(const T* x, const int8_t* packed, const float* bias, T* out, int64_t n, int64_t in, int64_t outs) {
    Rounded rows(n, in);
    int64_t panels = (outs + PANEL - 1) / PANEL, size = rows.groups * BLOCK, blocks = (n + ROWS - 1) / ROWS;
#pragma omp parallel
    {
        rows.round(x, n, in);
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++)
            for (int64_t b = 0; b < blocks; b++) {
                int64_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
                BY_COUNT<T>[count](rows, first, packed + p * size, bias + p * PANEL, b == 0 ? size : 0,
                                   out + first * outs + p * PANEL, outs, outs - p * PANEL);
            }
    }
}

// The weights at `rows` (outs,), addresses of `in` numbers each -> packed as above.
template <typename S>
void lay_out(const S* const* rows, int8_t* packed, int64_t outs, int64_t in) {
    int64_t panels = (outs + PANEL - 1) / PANEL, groups = (in + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t g = 0; g < groups; g++) {
            int8_t* block = packed + (p * groups + g) * BLOCK;
            int64_t count = in - g * GROUP < GROUP ? in - g * GROUP : GROUP;
            for (int64_t lane = 0; lane < PANEL; lane++) {
                int8_t integers[GROUP] = {};
                float scale = 0;
                if (p * PANEL + lane < outs) scale = round_group(rows[p * PANEL + lane] + g * GROUP, count, integers);
                std::memcpy(block + lane * sizeof(float), &scale, sizeof(float));
                for (int64_t k = 0; k < GROUP; k++) integers[k] = int8_t(integers[k] + OFFSET);
                for (int64_t k = 0; k < STEPS; k++)
                    std::memcpy(block + PANEL * sizeof(float) + (k * PANEL + lane) * WORD, integers + k * WORD, WORD);
            }
        }
}

}  // namespace

// Of products in T; as products.cpp's, but `more` is 0.
#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL int64_t narrow_panel_##SUFFIX() { return PANEL; }                                                           \
    KERNEL void lay_out_##SUFFIX(const void* rows, int8_t* packed, int64_t outs, int64_t in, int64_t,                  \
                                 int64_t halves) {                                                                     \
        if (halves)                                                                                                    \
            lay_out(static_cast<const bf16* const*>(rows), packed, outs, in);                                          \
        else                                                                                                           \
            lay_out(static_cast<const float* const*>(rows), packed, outs, in);                                         \
    }                                                                                                                  \
    KERNEL void narrow_product_##SUFFIX(const T* x, const int8_t* packed, const float* bias, T* out, int64_t n,        \
                                        int64_t in, int64_t outs) {                                                    \
        product(x, packed, bias, out, n, in, outs);                                                                    \
    }

#else  // 0 and nothing where there are no products of bytes

#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL int64_t narrow_panel_##SUFFIX() { return 0; }                                                               \
    KERNEL void lay_out_##SUFFIX(const void*, int8_t*, int64_t, int64_t, int64_t, int64_t) {}                          \
    KERNEL void narrow_product_##SUFFIX(const T*, const int8_t*, const float*, T*, int64_t, int64_t, int64_t) {}

#endif

EXPORT(float, fp32_int8)
EXPORT(bf16, bf16_int8)
