// Four products of bytes at a time, summed up in int32, by the instruction that this CPU has for it.
//
// DOT is defined where there is one. dot(sum, w, x) adds to each of LANES sums the products of its four bytes of w and of x, which
// are -127 .. 127; nothing saturates. Where the instruction takes w without a sign, w is stored plus OFFSET, and who calls
// subtracts OFFSET times the sum of x.
#pragma once
#include "vectors.h"

#if defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define DOT
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#define DOT
#include <arm_neon.h>
#endif

#ifdef DOT
namespace {

typedef int32_t ints __attribute__((vector_size(4 * LANES)));

#if defined(__AVX512VNNI__)
constexpr int OFFSET = 128;
inline ints dot(ints sum, ints w, ints x) { return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr int OFFSET = 128;
inline ints dot(ints sum, ints w, ints x) {
    return (ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
}
#elif defined(__AVX512BW__)
constexpr int OFFSET = 0;
inline ints dot(ints sum, ints w, ints x) {
    __mmask64 negative = _mm512_movepi8_mask((__m512i)w);
    __m512i turned = _mm512_mask_sub_epi8((__m512i)x, negative, _mm512_setzero_si512(), (__m512i)x);
    __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8((__m512i)w), turned);  // at most 2 * 127 * 127
    return sum + (ints)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
}
#elif defined(__AVX2__)
constexpr int OFFSET = 0;
inline ints dot(ints sum, ints w, ints x) {
    __m256i turned = _mm256_sign_epi8((__m256i)x, (__m256i)w);
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), turned);  // at most 2 * 127 * 127
    return sum + (ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
#else
constexpr int OFFSET = 0;
inline ints dot(ints sum, ints w, ints x) { return (ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
#endif

}  // namespace
#endif
