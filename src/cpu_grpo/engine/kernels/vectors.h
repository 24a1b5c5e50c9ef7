// As many floats as a register of this CPU holds (LANES), how they are read and written, and how many registers there are.
#pragma once
#include "numbers.h"

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define PAIRS_OF_BF16  // there is an instruction that multiplies pairs of bf16 and adds them up in fp32
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4, REGISTERS = 32;
#else
constexpr int LANES = 4, REGISTERS = 16;
#endif
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
// The same at any address. Not by memcpy: gcc would copy 32 bytes through the stack, in halves.
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

inline lanes load(const float* from) { return *reinterpret_cast<const anywhere*>(from); }
inline lanes load(const bf16* from) {
    return (lanes)(__builtin_convertvector(*reinterpret_cast<const halves*>(from), words) << 16);
}
inline void save(float* to, lanes x) { *reinterpret_cast<anywhere*>(to) = x; }

}  // namespace
