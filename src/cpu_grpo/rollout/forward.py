"""The two forward passes of a rollout: prompts all at once (prefill), and one token of every row (decode)."""

import torch
from torch.nn import functional

from cpu_grpo.kernels import fused
from cpu_grpo.prefix import common_prefix
from cpu_grpo.rollout.attention import Step, heads
from cpu_grpo.rollout.cache import CompletionCache, PromptBlock
from cpu_grpo.rollout.weights import LEVEL_COLUMNS, PackedDecoder


def prefill(model: PackedDecoder, prompts: list[list[int]]) -> tuple[PromptBlock, torch.Tensor]:
    """Runs g prompts, each once and without padding outside attention; what all begin with (the root) runs first, once.

    Returns:
        their keys and values (nobody seated yet), and the scores of their first tokens, (g, V).
    """
    decoder, root = model.decoder, common_prefix(prompts)
    rests = torch.tensor([len(prompt) - root for prompt in prompts])  # (g,)
    real = torch.arange(int(rests.max())) < rests[:, None]  # (g, P - root)
    places = root + (rests.cumsum(0) - rests)[:, None] + torch.arange(real.size(1))
    places = places.where(real, 0)  # (g, P - root) into the packed tokens
    angles = decoder.rope(torch.cat([torch.arange(root), *(root + torch.arange(n) for n in rests.tolist())]))
    # Padding comes after the real tokens, so causality hides it.
    seen = torch.ones(real.size(1), root + real.size(1), dtype=torch.bool).tril_(root)  # (P - root, P)
    keys, values = [], []

    def see(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """(b, heads, T, d) and (b, kv, S, d) twice -> (b, T, heads, d); without a mask S is T, and causal."""
        attended = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=decoder.attention_scale, enable_gqa=True
        )
        return attended.transpose(1, 2)

    def attend(number: int, qkv: torch.Tensor, *norms: object) -> torch.Tensor:
        parts = heads(qkv, decoder, *angles, *norms)
        # (g, heads, P - root, d), (g, kv, P - root, d) twice
        q, k, v = (t[places].transpose(1, 2) for t in parts)
        if not root:
            attended = [see(q, k, v, None)[real]]
        else:
            first = [t[None, :root].transpose(1, 2) for t in parts]  # (1, heads or kv, root, d)
            k = torch.cat([first[1].expand(len(k), -1, -1, -1), k], dim=2)  # (g, kv, P, d)
            v = torch.cat([first[2].expand(len(v), -1, -1, -1), v], dim=2)
            attended = [see(*first, None)[0], see(q, k, v, seen)[real]]
        keys.append(k)
        values.append(v)
        return torch.cat(attended).flatten(1)

    ids = torch.tensor([*prompts[0][:root], *(token for prompt in prompts for token in prompt[root:])])  # (N,)
    x, delta = _layers(model, ids, attend)
    last = root + rests.cumsum(0) - 1
    return PromptBlock.of(keys, values, root + rests), _head(model, x[last], delta[last], torch.zeros(len(prompts)))


def decode(
    model: PackedDecoder,
    tokens: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    cache: CompletionCache,
    blocks: list[PromptBlock],
    level: torch.Tensor,
) -> torch.Tensor:
    """Runs one token of each of n rows, appending its keys and values to the cache.

    Args:
        tokens: (n,) the rows' newest tokens.
        positions: (n,) their positions.
        lengths: (n,) tokens of the rows' completions that are in the cache already.
        blocks: the prompts; every row sits in one of them.
        level: (n,) is subtracted from the scores before they are rounded: about what the highest will be.

    Returns:
        the scores of the next tokens less the level, (n, V).
    """
    step = Step(model.decoder, cache, blocks, lengths, *model.decoder.rope(positions))
    if step.native and model.addresses is not None:
        return _head(model, *_layers_at_once(model, tokens, step), level)
    return _head(model, *_layers(model, tokens, step.attend), level)


def _layers(model: PackedDecoder, ids: torch.Tensor, attend: object) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) tokens -> the residual stream in fp32 and what the last layer adds to it, (n, H) both.

    Args:
        attend: (layer's number, projections (n, (heads + 2 kv) d), norms of q and k) -> (n, heads d).
    """
    x, delta = functional.embedding(ids, model.decoder.embedding).float(), None  # (n, H)
    for number, layer in enumerate(model.layers):
        norm = layer.attention_norm
        normed, _ = fused.add_norm(x, delta, norm.weight, norm.eps, model.dtype)
        attended = attend(number, layer.qkv(normed), layer.q_norm, layer.k_norm)
        norm = layer.mlp_norm
        normed, _ = fused.add_norm(x, layer.o(attended), norm.weight, norm.eps, model.dtype)
        delta = layer.down(fused.swiglu(layer.gate_up(normed)))
    return x, delta


def _layers_at_once(model: PackedDecoder, ids: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_layers` does, in one call of a compiled kernel."""
    decoder, keys, values = model.decoder, step.cache.keys, step.cache.values
    x = functional.embedding(ids, decoder.embedding).float()  # (n, H)
    delta = torch.empty(x.shape, dtype=model.dtype)
    step.native.decode_layers(
        model.addresses,
        len(model.layers),
        model.layers[0].attention_norm.eps,
        x,
        delta,
        x.size(1),
        model.layers[0].gate_up.outs // 2,
        step.cosines,
        step.sines,
        decoder.attention_scale,
        keys,
        values,
        keys.stride(0),
        step.lengths,
        step.prompt_keys,
        step.prompt_values,
        step.prompt_layer,
        step.prompt_lengths,
        step.prompt_capacities,
        x.size(0),
        decoder.heads,
        decoder.kv_heads,
        decoder.head_dim,
        values.size(3),
    )
    return x, delta


def _head(model: PackedDecoder, x: torch.Tensor, delta: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """The residual stream and what is to be added (n, H) -> scores over the vocabulary less the level, (n, V).

    Around 20, where scores come to lie, bf16 knows steps of 0.125 only; near zero it is fine-grained.
    """
    norm = model.norm
    states, _ = fused.add_norm(x, delta, norm.weight, norm.eps, model.dtype)
    return model.head(torch.cat([states, -level[:, None].to(states.dtype).expand(-1, LEVEL_COLUMNS)], dim=1))
