// A decoding step through all layers in one call: with few rows, going from one kernel to the next by way of Python takes a
// fifth of the step.
#include <cstdint>
#include <vector>

#include "numbers.h"

extern "C" {
void norm_bf16(float*, const bf16*, const float*, float, bf16*, float*, int64_t, int64_t);
void swiglu_bf16(const bf16*, bf16*, int64_t, int64_t);
void attend_bf16(const bf16*, const float*, const float*, float, const float*, const float*, float, bf16*, bf16*,
                 const int64_t*, const int64_t*, const int64_t*, const int64_t*, int64_t, const int64_t*, const int64_t*,
                 bf16*, int64_t, int64_t, int64_t, int64_t, int64_t);
void narrow_product_bf16(const bf16*, const bf16*, const float*, bf16*, int64_t, int64_t, int64_t);
}

namespace {

// A packed weight and its bias, as narrow_product takes them.
struct Product {
    const bf16* packed;
    const float* bias;
    void operator()(const std::vector<bf16>& x, bf16* out, int64_t n, int64_t outs) const {
        narrow_product_bf16(x.data(), packed, bias, out, n, int64_t(x.size()) / n, outs);
    }
};

// The addresses that decode_layers is given for each layer; the norms of queries and keys may be null.
struct Layer {
    const float* attention_norm;
    Product qkv;
    const float *q_norm, *k_norm;
    Product o;
    const float* mlp_norm;
    Product gate_up, down;
};

}  // namespace

// x (n, hidden), in place, is the residual stream; delta (n, hidden) gets what the last layer adds to it.
// `layers` are `count` of the above; `inner` is the size between gate_up and down; keys and values lie `layer_size` numbers
// apart from layer to layer; the others are attend's.
extern "C" void decode_layers_bf16(const Layer* layers, int64_t count, float eps, float* x, bf16* delta, int64_t hidden,
                                   int64_t inner, const float* cosines, const float* sines, float scale, bf16* keys,
                                   bf16* values, int64_t layer_size, const int64_t* lengths, const int64_t* prompt_keys,
                                   const int64_t* prompt_values, const int64_t* prompt_layer, const int64_t* prompts,
                                   const int64_t* prompt_capacities, int64_t n, int64_t heads, int64_t kv, int64_t d,
                                   int64_t capacity) {
    int64_t width = (heads + 2 * kv) * d;
    std::vector<bf16> normed(n * hidden), qkv(n * width), attended(n * heads * d), both(n * 2 * inner), gated(n * inner);
    for (int64_t i = 0; i < count; i++) {
        const Layer& layer = layers[i];
        norm_bf16(x, i ? delta : nullptr, layer.attention_norm, eps, normed.data(), nullptr, n, hidden);
        layer.qkv(normed, qkv.data(), n, width);
        attend_bf16(qkv.data(), layer.q_norm, layer.k_norm, eps, cosines, sines, scale, keys + i * layer_size,
                    values + i * layer_size, lengths, prompt_keys, prompt_values, prompt_layer, i, prompts,
                    prompt_capacities, attended.data(), n, heads, kv, d, capacity);
        layer.o(attended, delta, n, hidden);
        norm_bf16(x, delta, layer.mlp_norm, eps, normed.data(), nullptr, n, hidden);
        layer.gate_up(normed, both.data(), n, 2 * inner);
        swiglu_bf16(both.data(), gated.data(), n, inner);
        layer.down(gated, delta, n, hidden);
    }
}
