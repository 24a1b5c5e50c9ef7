// A decoding step through all layers in one call: with few rows, going from one kernel to the next by way of Python takes
// a fifth of the step.
//
// Formula    for each layer:  x += delta;  delta = o(attend(qkv(norm(x))))
//                             x += delta;  delta = down(silu(gate) * up),  gate and up = gate_up(norm(x))
// Shapes     x (n, hidden) in fp32, the residual stream, in place; delta (n, hidden) -> what the last layer adds to it
// Layout     `layers` holds each layer's addresses, as rollout/weights.py lists them (`_addresses`): weights as
//            products.cpp packs them, or where they lie, as rows.cpp takes them; keys and values as attention.cpp does.
// Reference  rollout/forward.py's `_layers`, which calls the same steps one by one;
//            tests/engine/rollout/test_engine_logps.py (..._give_at_once_what_they_give_one_by_one)
#include <cstdint>
#include <vector>

#include "numbers.h"

// T is what is computed in, W what weights are stored in.
template <typename T>
struct Kernels;
template <typename T, typename W>
constexpr void (*PRODUCT)(const T*, const W*, const float*, T*, int64_t, int64_t, int64_t) = nullptr;
template <typename T, typename W>
constexpr void (*ROW_PRODUCT)(const T*, const W*, const float*, const float*, T*, int64_t, int64_t, int64_t,
                              int64_t) = nullptr;

#define DECLARE(T, SUFFIX)                                                                                             \
    extern "C" {                                                                                                       \
    void norm_##SUFFIX(float*, const T*, const float*, float, T*, float*, int64_t, int64_t);                           \
    void swiglu_##SUFFIX(const T*, T*, int64_t, int64_t);                                                              \
    void attend_##SUFFIX(const T*, const float*, const float*, float, const float*, const float*, float, T*, T*,       \
                         const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t, const int64_t*,      \
                         const int64_t*, T*, int64_t, int64_t, int64_t, int64_t, int64_t);                             \
    }                                                                                                                  \
    template <>                                                                                                        \
    struct Kernels<T> {                                                                                                \
        static constexpr auto norm = norm_##SUFFIX;                                                                    \
        static constexpr auto swiglu = swiglu_##SUFFIX;                                                                \
        static constexpr auto attend = attend_##SUFFIX;                                                                \
    };
#define DECLARE_PRODUCT(T, W, SUFFIX)                                                                                  \
    KERNEL void narrow_product_##SUFFIX(const T*, const W*, const float*, T*, int64_t, int64_t, int64_t);              \
    template <>                                                                                                        \
    constexpr auto PRODUCT<T, W> = narrow_product_##SUFFIX;
#define DECLARE_ROW_PRODUCT(T, W, SUFFIX)                                                                              \
    KERNEL void row_product_##SUFFIX(const T*, const W*, const float*, const float*, T*, int64_t, int64_t,             \
                                     int64_t, int64_t);                                                                \
    template <>                                                                                                        \
    constexpr auto ROW_PRODUCT<T, W> = row_product_##SUFFIX;

DECLARE(float, fp32)
DECLARE(bf16, bf16)
DECLARE_PRODUCT(float, float, fp32_fp32)
DECLARE_PRODUCT(float, bf16, fp32_bf16)
DECLARE_PRODUCT(float, int8_t, fp32_int8)
DECLARE_PRODUCT(bf16, bf16, bf16_bf16)
DECLARE_PRODUCT(bf16, int8_t, bf16_int8)
DECLARE_ROW_PRODUCT(float, float, fp32_fp32)
DECLARE_ROW_PRODUCT(float, bf16, fp32_bf16)
DECLARE_ROW_PRODUCT(bf16, bf16, bf16_bf16)

namespace {

// A packed weight and its bias, as narrow_product takes them.
template <typename T, typename W>
struct Packed {
    const W* packed;
    const float* bias;
    void operator()(const std::vector<T>& x, T* out, int64_t n, int64_t outs) const {
        PRODUCT<T, W>(x.data(), packed, bias, out, n, int64_t(x.size()) / n, outs);
    }
};

// Up to three weights side by side where they lie, and their biases, as row_product takes them; of size 0: there is none.
template <typename T, typename W>
struct InPlace {
    struct {
        const W* weights;
        const float* bias;
        int64_t size;
    } parts[3];
    void operator()(const std::vector<T>& x, T* out, int64_t n, int64_t outs) const {
        for (auto& part : parts) {
            ROW_PRODUCT<T, W>(x.data(), part.weights, part.bias, nullptr, out, n, int64_t(x.size()) / n, part.size, outs);
            out += part.size;
        }
    }
};

// The addresses that decode_layers is given for each layer; the norms of queries and keys may be null.
template <typename Product>
struct Layer {
    const float* attention_norm;
    Product qkv;
    const float *q_norm, *k_norm;
    Product o;
    const float* mlp_norm;
    Product gate_up, down;
};

// x (n, hidden), in place, is the residual stream; delta (n, hidden) gets what the last layer adds to it.
// `layers` are `count` of the above; `inner` is the size between gate_up and down; keys and values lie `layer_size` numbers
// apart from layer to layer; the others are attend's.
template <typename T, typename Product>
void decode_layers(const Layer<Product>* layers, int64_t count, float eps, float* x, T* delta, int64_t hidden, int64_t inner,
                   const float* cosines, const float* sines, float scale, T* keys, T* values, int64_t layer_size,
                   const int64_t* lengths, const int64_t* prompt_keys, const int64_t* prompt_values,
                   const int64_t* prompt_layer, const int64_t* prompts, const int64_t* prompt_capacities, int64_t n,
                   int64_t heads, int64_t kv, int64_t d, int64_t capacity) {
    int64_t width = (heads + 2 * kv) * d;
    std::vector<T> normed(n * hidden), qkv(n * width), attended(n * heads * d), both(n * 2 * inner), gated(n * inner);
    for (int64_t i = 0; i < count; i++) {
        const Layer<Product>& layer = layers[i];
        Kernels<T>::norm(x, i ? delta : nullptr, layer.attention_norm, eps, normed.data(), nullptr, n, hidden);
        layer.qkv(normed, qkv.data(), n, width);
        Kernels<T>::attend(qkv.data(), layer.q_norm, layer.k_norm, eps, cosines, sines, scale, keys + i * layer_size,
                           values + i * layer_size, lengths, prompt_keys, prompt_values, prompt_layer, i, prompts,
                           prompt_capacities, attended.data(), n, heads, kv, d, capacity);
        layer.o(attended, delta, n, hidden);
        Kernels<T>::norm(x, delta, layer.mlp_norm, eps, normed.data(), nullptr, n, hidden);
        layer.gate_up(normed, both.data(), n, 2 * inner);
        Kernels<T>::swiglu(both.data(), gated.data(), n, inner);
        layer.down(gated, delta, n, hidden);
    }
}

}  // namespace

#define EXPORT(NAME, T, ...)                                                                                           \
    KERNEL void NAME(                                                                                                  \
        const Layer<__VA_ARGS__>* layers, int64_t count, float eps, float* x, T* delta, int64_t hidden, int64_t inner, \
        const float* cosines, const float* sines, float scale, T* keys, T* values, int64_t layer_size,                 \
        const int64_t* lengths, const int64_t* prompt_keys, const int64_t* prompt_values, const int64_t* prompt_layer, \
        const int64_t* prompts, const int64_t* prompt_capacities, int64_t n, int64_t heads, int64_t kv, int64_t d,     \
        int64_t capacity) {                                                                                            \
        decode_layers(layers, count, eps, x, delta, hidden, inner, cosines, sines, scale, keys, values, layer_size,    \
                      lengths, prompt_keys, prompt_values, prompt_layer, prompts, prompt_capacities, n, heads, kv, d,  \
                      capacity);                                                                                       \
    }

// The product, last, may have commas in it.
EXPORT(decode_layers_fp32_fp32, float, Packed<float, float>)
EXPORT(decode_layers_fp32_bf16, float, Packed<float, bf16>)
EXPORT(decode_layers_fp32_int8, float, Packed<float, int8_t>)
EXPORT(decode_layers_bf16_bf16, bf16, Packed<bf16, bf16>)
EXPORT(decode_layers_bf16_int8, bf16, Packed<bf16, int8_t>)
EXPORT(decode_layers_in_place_fp32_fp32, float, InPlace<float, float>)
EXPORT(decode_layers_in_place_fp32_bf16, float, InPlace<float, bf16>)
EXPORT(decode_layers_in_place_bf16_bf16, bf16, InPlace<bf16, bf16>)
