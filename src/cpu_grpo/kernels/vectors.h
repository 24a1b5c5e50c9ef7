// As many floats as a register of this CPU holds, and how they are read.
#pragma once
#include "numbers.h"

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

inline lanes load(const float* from) { return *reinterpret_cast<const anywhere*>(from); }
inline lanes load(const bf16* from) {
    return (lanes)(__builtin_convertvector(*reinterpret_cast<const halves*>(from), words) << 16);
}

}  // namespace
