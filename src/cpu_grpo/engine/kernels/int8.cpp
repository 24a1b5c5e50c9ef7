// Products with a large weight in 8 bits: half the bytes of bf16, and up to twice the products an instruction.
//
// Formula    out = rounded(x) rounded(weight)^T + bias; rounded(v) is a scale times integers from -127 to 127, and the scale of
//            each GROUP inputs of a row, of x as of the weight, is their largest magnitude / 127. In a fine product it is
//            (rounded(x) + rounded(x - rounded(x))) in place of rounded(x), as if x had 16 bits, at twice the work
// Shapes     x (n, in), weight (outs, in), bias (outs,) -> out (n, outs)
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
constexpr int64_t CACHED = 1 << 19;  // bytes of x's integers that panels are multiplied by, before the next rows are
constexpr int64_t CHUNK = 128;       // rows of them at least: the weight passes through once for each such chunk

// A row's `count` numbers -> GROUP, zeros past `count`.
template <typename T>
void widen(const T* from, int64_t count, float* values) {
    for (int64_t k = 0; k < GROUP; k++) values[k] = k < count ? wide(from[k]) : 0;
}

// GROUP numbers -> integers; returns their scale.
float round_group(const float* values, int8_t* integers) {
    float highest = 0;
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

// Rows of x as integers: of each group its scale, what sums start at, and GROUP integers. Of a fine product's rows first all
// groups, then as many of what rounding left over.
struct Rounded {
    int64_t parts, groups;         // groups of the weight
    std::vector<int8_t> integers;  // (n, parts, groups, GROUP)
    std::vector<float> scales;     // (n, parts, groups)
    std::vector<int32_t> starts;   // (n, parts, groups)

    Rounded(int64_t n, int64_t in, bool fine)
        : parts(fine ? 2 : 1), groups((in + GROUP - 1) / GROUP), integers(n * parts * groups * GROUP),
          scales(n * parts * groups), starts(n * parts * groups) {}

    template <typename T>
    void round(const T* x, int64_t n, int64_t in) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n * groups; i++) {
            int64_t row = i / groups, group = i % groups, from = group * GROUP;
            float values[GROUP];
            widen(x + row * in + from, in - from, values);
            for (int64_t part = 0; part < parts; part++) {
                int64_t place = (row * parts + part) * groups + group;
                int8_t* to = integers.data() + place * GROUP;
                float scale = round_group(values, to);
                int32_t sum = 0;
                for (int64_t k = 0; k < GROUP; k++) sum += to[k], values[k] -= scale * to[k];
                scales[place] = scale;
                starts[place] = -OFFSET * sum;
            }
        }
    }
};

// A panel's outputs of R rows from `first` on, plus bias (PANEL,) -> the first `left` of them to out, rows `outs` apart.
// Meanwhile what lies `ahead` bytes from the panel is fetched, if that is not 0.
template <int R, typename T>
void some_rows(const Rounded& x, int64_t first, const int8_t* panel, const float* bias, int64_t ahead, T* out, int64_t outs,
               int64_t left) {
    int64_t groups = x.parts * x.groups;
    const int8_t* integers = x.integers.data() + first * groups * GROUP;
    const float* scales = x.scales.data() + first * groups;
    const int32_t* starts = x.starts.data() + first * groups;
    lanes sums[R][VECTORS];
    for (int v = 0; v < VECTORS; v++)
        for (int r = 0; r < R; r++) sums[r][v] = load(bias + LANES * v);
    for (int64_t g = 0; g < groups; g++) {
        const int8_t* block = panel + (g < x.groups ? g : g - x.groups) * BLOCK;
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
void product(const T* x, const int8_t* packed, const float* bias, T* out, int64_t n, int64_t in, int64_t outs, bool fine) {
    Rounded rows(n, in, fine);
    int64_t panels = (outs + PANEL - 1) / PANEL, size = rows.groups * BLOCK;
    int64_t fit = CACHED / (rows.parts * rows.groups * GROUP), chunk = fit > CHUNK ? fit : CHUNK;
#pragma omp parallel
    {
        rows.round(x, n, in);
        for (int64_t begin = 0; begin < n; begin += chunk) {
            int64_t some = n - begin < chunk ? n - begin : chunk, blocks = (some + ROWS - 1) / ROWS;
#pragma omp for schedule(static) nowait
            for (int64_t p = 0; p < panels; p++)
                for (int64_t b = 0; b < blocks; b++) {
                    int64_t first = some * b / blocks, count = some * (b + 1) / blocks - first, row = begin + first;
                    BY_COUNT<T>[count](rows, row, packed + p * size, bias + p * PANEL, b == 0 ? size : 0,
                                       out + row * outs + p * PANEL, outs, outs - p * PANEL);
                }
        }
    }
}

// The weights at `rows` (outs,), addresses of `in` numbers each, and after them a one and `more` - 1 zeros -> packed as above.
template <typename S>
void lay_out(const S* const* rows, int8_t* packed, int64_t outs, int64_t in, int64_t more) {
    int64_t panels = (outs + PANEL - 1) / PANEL, groups = (in + more + GROUP - 1) / GROUP;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++)
        for (int64_t g = 0; g < groups; g++) {
            int8_t* block = packed + (p * groups + g) * BLOCK;
            int64_t left = in - g * GROUP;
            for (int64_t lane = 0; lane < PANEL; lane++) {
                int8_t integers[GROUP] = {};
                float scale = 0, values[GROUP];
                if (p * PANEL + lane < outs) {
                    widen(rows[p * PANEL + lane] + g * GROUP, left, values);
                    if (more && left >= 0 && left < GROUP) values[left] = 1;
                    scale = round_group(values, integers);
                }
                std::memcpy(block + lane * sizeof(float), &scale, sizeof(float));
                for (int64_t k = 0; k < GROUP; k++) integers[k] = int8_t(integers[k] + OFFSET);
                for (int64_t k = 0; k < STEPS; k++)
                    std::memcpy(block + PANEL * sizeof(float) + (k * PANEL + lane) * WORD, integers + k * WORD, WORD);
            }
        }
}

}  // namespace

// Of products in T; as products.cpp's, and fine ones.
#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL int64_t narrow_panel_##SUFFIX() { return PANEL; }                                                           \
    KERNEL void lay_out_##SUFFIX(const void* rows, int8_t* packed, int64_t outs, int64_t in, int64_t more,             \
                                 int64_t halves) {                                                                     \
        if (halves)                                                                                                    \
            lay_out(static_cast<const bf16* const*>(rows), packed, outs, in, more);                                    \
        else                                                                                                           \
            lay_out(static_cast<const float* const*>(rows), packed, outs, in, more);                                   \
    }                                                                                                                  \
    KERNEL void narrow_product_##SUFFIX(const T* x, const int8_t* packed, const float* bias, T* out, int64_t n,        \
                                        int64_t in, int64_t outs) {                                                    \
        product(x, packed, bias, out, n, in, outs, false);                                                             \
    }                                                                                                                  \
    KERNEL void fine_product_##SUFFIX(const T* x, const int8_t* packed, const float* bias, T* out, int64_t n,          \
                                      int64_t in, int64_t outs) {                                                      \
        product(x, packed, bias, out, n, in, outs, true);                                                              \
    }

#else  // 0 and nothing where there are no products of bytes

#define EXPORT(T, SUFFIX)                                                                                              \
    KERNEL int64_t narrow_panel_##SUFFIX() { return 0; }                                                               \
    KERNEL void lay_out_##SUFFIX(const void*, int8_t*, int64_t, int64_t, int64_t, int64_t) {}                          \
    KERNEL void narrow_product_##SUFFIX(const T*, const int8_t*, const float*, T*, int64_t, int64_t, int64_t) {}       \
    KERNEL void fine_product_##SUFFIX(const T*, const int8_t*, const float*, T*, int64_t, int64_t, int64_t) {}

#endif

EXPORT(float, fp32_int8)
EXPORT(bf16, bf16_int8)
