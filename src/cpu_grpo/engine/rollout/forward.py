"""The forward passes of a rollout: prompts all at once (prefill), and one token of every row (decode)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from cpu_grpo.engine.decoder import Decoder, Norm
from cpu_grpo.engine.kernels import fused
from cpu_grpo.engine.rollout.attention import Step, heads
from cpu_grpo.engine.rollout.cache import CompletionCache, PromptBlock
from cpu_grpo.engine.rollout.weights import LEVEL_COLUMNS, AtOnce, PackedDecoder

Attend = Callable[[int, torch.Tensor, Norm | None, Norm | None], torch.Tensor]  # see `_layers`


@dataclass(frozen=True)
class Root:
    """What all prompts begin with: its keys and values."""

    tokens: int  # R
    keys: list[torch.Tensor]  # of each layer, (1, kv, R, d)
    values: list[torch.Tensor]  # likewise


def prefill_root(model: PackedDecoder, ids: list[int]) -> Root:
    """Runs what all prompts begin with, which may be nothing."""
    decoder = model.decoder
    angles = decoder.rope(torch.arange(len(ids)))
    root = Root(len(ids), [], [])

    def attend(number: int, qkv: torch.Tensor, *norms: Norm | None) -> torch.Tensor:
        q, k, v = (t[None].transpose(1, 2) for t in heads(qkv, decoder, *angles, *norms))  # (1, heads or kv, R, d)
        root.keys.append(k)
        root.values.append(v)
        return _see(decoder, q, k, v, None)[0].flatten(1)

    if ids:
        _layers(model, torch.tensor(ids), attend)
    return root


def prefill(model: PackedDecoder, root: Root, prompts: list[list[int]]) -> tuple[PromptBlock, torch.Tensor]:
    """Runs what g prompts have after the root, without padding outside attention.

    Returns:
        the prompts' keys and values (nobody seated yet), and the scores of their first tokens, (g, V).
    """
    decoder, start = model.decoder, root.tokens
    rests = torch.tensor([len(prompt) - start for prompt in prompts])  # (g,)
    real = torch.arange(int(rests.max())) < rests[:, None]  # (g, T)
    places = (rests.cumsum(0) - rests)[:, None] + torch.arange(real.size(1))
    places = places.where(real, 0)  # (g, T) into the packed tokens
    angles = decoder.rope(torch.cat([torch.arange(start, start + n) for n in rests.tolist()]))
    # Padding comes after the real tokens, so causality hides it.
    causal = real.new_ones(real.size(1), start + real.size(1)).tril_(start)  # (T, R + T)
    seen = causal if start else None  # a plain causal mask need not be passed
    keys, values = [], []

    def attend(number: int, qkv: torch.Tensor, *norms: Norm | None) -> torch.Tensor:
        # (g, heads, T, d), (g, kv, T, d) twice
        q, k, v = (t[places].transpose(1, 2) for t in heads(qkv, decoder, *angles, *norms))
        if start:
            k, v = _after(root.keys[number], k), _after(root.values[number], v)
        keys.append(k)
        values.append(v)
        return _see(decoder, q, k, v, seen)[real].flatten(1)

    ids = torch.tensor([token for prompt in prompts for token in prompt[start:]])  # (N,)
    x, delta = _layers(model, ids, attend)
    last = rests.cumsum(0) - 1
    return PromptBlock.of(keys, values, start + rests), _head(model, x[last], delta[last], torch.zeros(len(prompts)))


def _after(root: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """(1, kv, R, d) and (g, kv, T, d) -> (g, kv, R + T, d)."""
    return torch.cat([root.expand(len(rest), -1, -1, -1), rest], dim=2)


def _see(
    decoder: Decoder, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """(b, heads, T, d) and (b, kv, S, d) twice -> (b, T, heads, d); without a mask S is T, and causal."""
    attended = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=decoder.attention_scale, enable_gqa=True
    )
    return attended.transpose(1, 2)


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
    if step.native and model.at_once:
        return _head(model, *_layers_at_once(model, model.at_once, tokens, step), level)
    return _head(model, *_layers(model, tokens, step.attend), level)


def _layers(model: PackedDecoder, ids: torch.Tensor, attend: Attend) -> tuple[torch.Tensor, torch.Tensor]:
    """(n,) tokens -> the residual stream in fp32 and what the last layer adds to it, (n, H) both.

    Args:
        attend: (layer's number, projections (n, (heads + 2 kv) d), norms of q and k) -> (n, heads d).
    """
    x = functional.embedding(ids, model.decoder.embedding).float()  # (n, H)
    delta: torch.Tensor | None = None
    for number, layer in enumerate(model.layers):
        norm = layer.attention_norm
        normed, _ = fused.add_norm(x, delta, norm.weight, norm.eps, model.dtype)
        attended = attend(number, layer.qkv(normed), layer.q_norm, layer.k_norm)
        norm = layer.mlp_norm
        normed, _ = fused.add_norm(x, layer.o(attended), norm.weight, norm.eps, model.dtype)
        delta = layer.down(fused.swiglu(layer.gate_up(normed)))
    assert delta is not None, "a decoder has layers"
    return x, delta


def _layers_at_once(
    model: PackedDecoder, at_once: AtOnce, ids: torch.Tensor, step: Step
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_layers` does, in one call of a compiled kernel."""
    decoder, keys, values = model.decoder, step.cache.keys, step.cache.values
    x = functional.embedding(ids, decoder.embedding).float()  # (n, H)
    delta = torch.empty(x.shape, dtype=model.dtype)
    at_once.kernel(
        at_once.addresses,
        len(model.layers),
        model.layers[0].attention_norm.eps,
        x,
        delta,
        x.size(1),
        at_once.inner,
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
