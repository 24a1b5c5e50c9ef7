"""Attention of one decoding step: every row sees its group's prompt, stored once, and its own completion so far."""

from dataclasses import dataclass

import torch

from cpu_grpo.engine.decoder import Decoder, Norm
from cpu_grpo.engine.kernels import Native, fused
from cpu_grpo.engine.rollout.cache import CompletionCache, PromptBlock, compiled

WIDTH_STEP = 32  # torch's products read completions up to a multiple of this, and so keep their shapes for a while


@dataclass
class Step:
    """What all layers of one decoding step of n rows have in common."""

    decoder: Decoder
    cache: CompletionCache
    blocks: list[PromptBlock]
    lengths: torch.Tensor  # (n,) tokens of the completions in the cache
    cosines: torch.Tensor  # (n, d / 2)
    sines: torch.Tensor  # (n, d / 2)

    def __post_init__(self) -> None:
        self.native = compiled(self.decoder.head_dim, self.cache.keys.dtype)
        if self.native:
            self._locate_prompts()
        else:
            self.width = min(-(-(int(self.lengths.max()) + 1) // WIDTH_STEP) * WIDTH_STEP, self.cache.values.size(3))
            ahead = torch.arange(self.width) > self.lengths[:, None]
            hidden = torch.zeros(ahead.shape, dtype=self.cache.keys.dtype)
            self.hidden = hidden.masked_fill_(ahead, float("-inf"))[:, None]  # (n, 1, W)

    def attend(
        self, layer: int, qkv: torch.Tensor, q_norm: Norm | None = None, k_norm: Norm | None = None
    ) -> torch.Tensor:
        """Projections (n, (heads + 2 kv) d) -> what the rows see, (n, heads d); the cache gets the keys and values."""
        if self.native:
            return self._compiled(self.native, layer, qkv, q_norm, k_norm)
        return self._composed(layer, qkv, q_norm, k_norm)

    def _compiled(
        self, kernels: Native, layer: int, qkv: torch.Tensor, q_norm: Norm | None, k_norm: Norm | None
    ) -> torch.Tensor:
        decoder, keys, values = self.decoder, self.cache.keys[layer], self.cache.values[layer]
        out = qkv.new_empty(qkv.size(0), decoder.heads * decoder.head_dim)
        kernels.attend(
            qkv,
            q_norm and q_norm.weight,
            k_norm and k_norm.weight,
            q_norm.eps if q_norm else 0.0,
            self.cosines,
            self.sines,
            decoder.attention_scale,
            keys,
            values,
            self.lengths,
            self.prompt_keys,
            self.prompt_values,
            self.prompt_layer,
            layer,
            self.prompt_lengths,
            self.prompt_capacities,
            out,
            qkv.size(0),
            decoder.heads,
            decoder.kv_heads,
            decoder.head_dim,
            values.size(2),
        )
        return out

    def _locate_prompts(self) -> None:
        """Addresses (n,) of each row's prompt in the first layer, bytes to the next layer's, lengths and capacities."""
        found = torch.empty(5, self.lengths.numel(), dtype=torch.long)
        self.prompt_keys, self.prompt_values, self.prompt_layer, self.prompt_lengths, self.prompt_capacities = found
        for block in self.blocks:
            size = block.keys.element_size()
            of_group = block.groups * block.keys.stride(1) * size
            found[0, block.rows] = block.keys.data_ptr() + of_group
            found[1, block.rows] = block.values.data_ptr() + of_group
            found[2, block.rows] = block.keys.stride(0) * size
            found[3, block.rows] = block.lengths[block.groups]
            found[4, block.rows] = block.values.size(3)

    def _composed(self, layer: int, qkv: torch.Tensor, q_norm: Norm | None, k_norm: Norm | None) -> torch.Tensor:
        decoder = self.decoder
        q, k, v = heads(qkv, decoder, self.cosines, self.sines, q_norm, k_norm)
        self.cache.append(layer, self.lengths, k, v)
        q = (q * decoder.attention_scale).unflatten(1, (decoder.kv_heads, -1))  # (n, kv, rep, d)
        keys = self.cache.keys[layer, : q.size(0), ..., : self.width]
        values = self.cache.values[layer, : q.size(0), :, : self.width]
        attended, weight = _attend(q, keys, values, self.hidden)  # (n, kv, rep, d), (n, kv, rep, 1)
        for block in self.blocks:
            _attend_prompts(q, layer, block, attended, weight)
        return attended.flatten(1)


def heads(
    qkv: torch.Tensor,
    decoder: Decoder,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    q_norm: Norm | None,
    k_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Projections (n, (heads + 2 kv) d) -> rotated q (n, heads, d) and k (n, kv, d), and v (n, kv, d)."""
    parts = [decoder.heads, decoder.kv_heads, decoder.kv_heads]
    q, k, v = qkv.unflatten(1, (-1, decoder.head_dim)).split(parts, dim=1)
    q, k = _head_norm(q, q_norm), _head_norm(k, k_norm)
    return fused.rotary(q, cosines, sines), fused.rotary(k, cosines, sines), v


def _head_norm(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    if norm is None:
        return x
    wide = x.float().flatten(0, 1)  # (n * heads, d), a copy or unchanged by the norm
    return fused.add_norm(wide, None, norm.weight, norm.eps, x.dtype)[0].view(x.shape)


def _attend_prompts(
    q: torch.Tensor, layer: int, block: PromptBlock, attended: torch.Tensor, weight: torch.Tensor
) -> None:
    """Adds what the block's rows see in their prompts to what they see in themselves, in place.

    A group's queries meet its prompt's keys in one product: (m * rep, d) by (d, P) for each key head.
    """
    groups, most = block.members.shape
    _, kv, rep, size = q.shape
    grouped = q[block.members].transpose(1, 2).reshape(groups, kv, most * rep, size)
    found, found_weight = _attend(grouped, block.keys[layer], block.values[layer], block.hidden)

    def seated(t: torch.Tensor) -> torch.Tensor:  # (g, kv, m * rep, e) -> (k, kv, rep, e)
        return t.unflatten(2, (most, rep)).transpose(1, 2).flatten(0, 1)[block.places]

    found, found_weight = seated(found), seated(found_weight)
    # Two softmaxes over parts of one sequence join by their log-sums.
    share = torch.sigmoid(found_weight - weight[block.rows])  # (k, kv, rep, 1)
    attended[block.rows] = torch.lerp(attended[block.rows], found, share.to(found.dtype))


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, kv, r, d) scaled queries, (b, kv, d, S) keys, (b, kv, S, d) values, (b, 1, S) added to the scores
    -> (b, kv, r, d), and the log of the scores' sum of exps, (b, kv, r, 1) in fp32."""
    batch, kv, rows, _ = q.shape
    scores = torch.bmm(q.flatten(0, 1), keys.flatten(0, 1))  # (b * kv, r, S)
    scores.view(batch, kv * rows, -1).add_(hidden)
    weights = scores.softmax(dim=-1)
    # The highest score's weight is exp(score - log of the sum): cheaper than another pass of exps.
    total = scores.amax(dim=-1, keepdim=True).float() - weights.amax(dim=-1, keepdim=True).float().log()
    return torch.bmm(weights, values.flatten(0, 1)).unflatten(0, (batch, kv)), total.unflatten(0, (batch, kv))
