// Products of few rows with a large weight, as decoding makes them: the weight is read from memory once, in the order it
// lies in, while the rows stay in the cache. Needs AVX-512's bf16 instructions; products.py says what is done elsewhere.
#include <cstdint>
#include <cstring>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>

namespace {

constexpr int64_t VECTORS = 3, PANEL = 16 * VECTORS;  // outputs computed together
constexpr int64_t ROWS = 8;      // computed together: ROWS * VECTORS sums and VECTORS weights fill the registers
constexpr int64_t CACHED = 128;  // rows that stay in the cache while panels pass by

// The part of a panel that comes next which to fetch meanwhile: of each VECTORS lines, `from`, `from + by`, ...
struct Next {
    const char* panel;
    int from, by;
};

// A panel's outputs of R rows: x (R, in) times panel (in / 2, PANEL, 2), plus bias (PANEL,) -> the first `left` of them to
// out, rows `outs` apart.
template <int R>
void some_rows(const uint16_t* x, int64_t in, const uint16_t* panel, const float* bias, Next next, uint16_t* out,
               int64_t outs, int64_t left) {
    __m512 sums[R][VECTORS];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) sums[r][v] = _mm512_loadu_ps(bias + 16 * v);
    for (int64_t k = 0; k < in / 2; k++) {
        __m512bh weights[VECTORS];
        for (int v = 0; v < VECTORS; v++)
            weights[v] = (__m512bh)_mm512_loadu_si512(panel + (k * PANEL + 16 * v) * 2);
        for (int64_t line = next.from; line < VECTORS; line += next.by)
            _mm_prefetch(next.panel + (k * VECTORS + line) * 64, _MM_HINT_T1);
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

constexpr decltype(&some_rows<1>) BY_COUNT[ROWS + 1] = {
    nullptr,      some_rows<1>, some_rows<2>, some_rows<3>, some_rows<4>,
    some_rows<5>, some_rows<6>, some_rows<7>, some_rows<8>,
};

void product(const uint16_t* x, const uint16_t* packed, const float* bias, uint16_t* out, int64_t n, int64_t in,
             int64_t outs) {
    int64_t panels = (outs + PANEL - 1) / PANEL, blocks = (n + ROWS - 1) / ROWS;
#pragma omp parallel for schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        const uint16_t* panel = packed + p * in * PANEL;
        const char* next = reinterpret_cast<const char*>(p + 1 < panels ? panel + in * PANEL : panel);
        int by = blocks < VECTORS ? int(blocks) : int(VECTORS);
        for (int64_t b = 0; b < blocks; b++) {
            int64_t first = n * b / blocks, count = n * (b + 1) / blocks - first;
            BY_COUNT[count](x + first * in, in, panel, bias + p * PANEL, {next, b < by ? int(b) : int(VECTORS), by},
                            out + first * outs + p * PANEL, outs, outs - p * PANEL);
        }
    }
}

}  // namespace

extern "C" int64_t narrow_panel_bf16() { return PANEL; }

// x (n, in) times packed (panels, in / 2, PANEL, 2), plus bias (panels * PANEL,) -> out (n, outs); in is even.
extern "C" void narrow_product_bf16(const uint16_t* x, const uint16_t* packed, const float* bias, uint16_t* out, int64_t n,
                                    int64_t in, int64_t outs) {
    for (int64_t first = 0; first < n; first += CACHED)
        product(x + first * in, packed, bias, out + first * outs, n - first < CACHED ? n - first : CACHED, in, outs);
}

#else

extern "C" int64_t narrow_panel_bf16() { return 0; }
extern "C" void narrow_product_bf16(const uint16_t*, const uint16_t*, const float*, uint16_t*, int64_t, int64_t, int64_t) {}

#endif
