// Numbers as the kernels know them: float, and bf16 for storage; arithmetic is in float throughout.
#pragma once
#include <cstdint>

#ifdef _WIN32
#define KERNEL extern "C" __declspec(dllexport)  // what Python calls
#else
#define KERNEL extern "C"
#endif

namespace {

enum class bf16 : uint16_t {};  // the upper half of a float; an enum, as gcc does not vectorise loops over a struct

inline float wide(float x) { return x; }
inline float wide(bf16 x) { return __builtin_bit_cast(float, uint32_t(x) << 16); }
inline void put(float& to, float x) { to = x; }
inline void put(bf16& to, float x) {  // to nearest, ties to even
    uint32_t bits = __builtin_bit_cast(uint32_t, x);
    to = bf16((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// exp to about 2 units in the last place between -87 and 88, where it stops changing (1.6e-38 and 1.7e38); no branches,
// so that loops over it vectorise. Cephes' polynomial.
inline float exponential(float x) {
    x = __builtin_fminf(__builtin_fmaxf(x, -87.0f), 88.0f);
    float n = __builtin_rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __builtin_bit_cast(float, uint32_t(int32_t(n) + 127) << 23);
}

}  // namespace
