"""Attention over packed trees of a prompt and its completions, as plain batched products, with its gradient.

A prompt sees its own past, which begins with what all prompts share; a completion sees its prompt and its own past. The
CPU's flash attention spends most of its time on other things than arithmetic at these lengths (docs/log.md); batched
matrix products do not.
"""

from dataclasses import dataclass
from typing import Any

import torch

from cpu_grpo.engine.kernels import fused
from cpu_grpo.engine.learner.packing import Tree


@dataclass(frozen=True)
class Block:
    """G sequences of ragged lengths, packed one after the other, that all see the packed sequence's first `root` tokens
    and the `shared` ones from `start` on.

    For the products they lie side by side at the longest's length T. What that adds to a shorter one comes after its
    end, so causality hides it as keys, and its queries' results are dropped.
    """

    root: int
    start: int
    shared: int  # P is root + shared
    first: int
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.lengths)

    def places(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Where (G, T) finds its tokens in the packed sequence (anything, past an end), and which are real."""
        lengths = torch.tensor(self.lengths)
        column = torch.arange(self.longest)  # (T,)
        real = column < lengths[:, None]  # (G, T)
        begins = self.first + lengths.cumsum(0) - lengths
        return (begins[:, None] + column).where(real, self.first), real


def blocks(trees: tuple[Tree, ...]) -> list[Block]:
    """What all prompts begin with; then of each tree the prompt's rest by itself and its completions together."""
    root = trees[0].root if trees else 0
    found = [Block(0, 0, 0, 0, (root,))] if root else []
    for tree in trees:
        found.append(Block(root, 0, 0, tree.start, (tree.prompt,)))
        if tree.lengths:
            found.append(Block(root, tree.start, tree.prompt, tree.start + tree.prompt, tree.lengths))
    return found


class TreeAttention(torch.autograd.Function):
    """(q (N, heads, d), k (N, kv, d), v (N, kv, d), trees, scale) -> (N, heads, d); q and k already rotated."""

    @staticmethod
    def forward(
        ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, trees: tuple[Tree, ...], scale: float
    ) -> torch.Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        saved = []
        for block in blocks(trees):
            queries = _queries(q, block, k.size(1))
            weights = _weights(queries, _keys(k, block), block, scale)
            _put_queries(torch.bmm(weights, _keys(v, block)), out, block, k.size(1))
            saved.append(weights)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.trees, ctx.scale = trees, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        weights_of = iter(saved)
        for block in blocks(ctx.trees):
            weights = next(weights_of)  # (kv * G, rep * T, S)
            queries, outer = _queries(q, block, k.size(1)), _queries(gradient, block, k.size(1))
            if not _square(block):
                outer = outer.mul_(_real(block, queries))
            _add_keys(torch.bmm(weights.transpose(1, 2), outer), dv, block)
            inner = torch.bmm(outer, _keys(v, block).transpose(1, 2))
            inner = fused.causal_softmax_backward(inner, weights, ctx.scale, block.longest)
            _put_queries(torch.bmm(inner, _keys(k, block)), dq, block, k.size(1))
            _add_keys(torch.bmm(inner.transpose(1, 2), queries), dk, block)
        return dq, dk, dv, None, None


def _weights(queries: torch.Tensor, keys: torch.Tensor, block: Block, scale: float) -> torch.Tensor:
    """(kv * G, rep * T, d) and (kv * G, S, d) -> attention weights (kv * G, rep * T, S), S = P + T."""
    return fused.causal_softmax(torch.bmm(queries, keys.transpose(1, 2)), scale, block.longest)


def _square(block: Block) -> bool:
    """Whether the block's sequences are of one length, so that its packed tokens are (G, T) as they lie."""
    return min(block.lengths) == block.longest


def _side_by_side(x: torch.Tensor, block: Block) -> torch.Tensor:
    """(N, n, d) -> (G, T, n, d)."""
    if _square(block):
        return x[block.first : block.first + sum(block.lengths)].unflatten(0, (len(block.lengths), block.longest))
    return x[block.places()[0]]


def _queries(x: torch.Tensor, block: Block, kv: int) -> torch.Tensor:
    """(N, heads, d) -> (kv * G, rep * T, d)."""
    x = _side_by_side(x, block).unflatten(2, (kv, -1))  # (G, T, kv, rep, d)
    return x.permute(2, 0, 3, 1, 4).reshape(kv * x.size(0), -1, x.size(-1))


def _keys(x: torch.Tensor, block: Block) -> torch.Tensor:
    """(N, kv, d) -> (kv * G, S, d): the root, the shared tokens, then the sequence's own."""
    own = _side_by_side(x, block).permute(2, 0, 1, 3)  # (kv, G, T, d)
    seen = (x[: block.root], x[block.start : block.start + block.shared])
    shared = [some.transpose(0, 1)[:, None].expand(-1, own.size(1), -1, -1) for some in seen]
    return torch.cat([*shared, own], dim=2).flatten(0, 1)


def _real(block: Block, queries: torch.Tensor) -> torch.Tensor:
    """1 for real queries and 0 for what fills short sequences up, shaped to multiply (kv * G, rep * T, d)."""
    real = block.places()[1].to(queries.dtype)  # (G, T)
    groups, times = real.shape
    kv, rep = queries.size(0) // groups, queries.size(1) // times
    return real[None, :, None].expand(kv, groups, rep, times).reshape(kv * groups, rep * times, 1)


def _put_queries(x: torch.Tensor, out: torch.Tensor, block: Block, kv: int) -> None:
    """Puts (kv * G, rep * T, d) back to its places in (N, heads, d)."""
    groups, size = len(block.lengths), out.size(-1)
    x = x.view(kv, groups, -1, block.longest, size).permute(1, 3, 0, 2, 4).flatten(2, 3)  # (G, T, heads, d)
    _put(x, out, block)


def _add_keys(x: torch.Tensor, out: torch.Tensor, block: Block) -> None:
    """Adds (kv * G, S, d) to (N, kv, d): the root's and the shared tokens' summed over the sequences that see them."""
    x = x.unflatten(0, (-1, len(block.lengths)))  # (kv, G, S, d)
    seen = block.root + block.shared
    shared = x[:, :, :seen].sum(dim=1).transpose(0, 1)  # (P, kv, d)
    _put(x[:, :, seen:].permute(1, 2, 0, 3), out, block)
    out[: block.root] += shared[: block.root]
    out[block.start : block.start + block.shared] += shared[block.root :]


def _put(x: torch.Tensor, out: torch.Tensor, block: Block) -> None:
    """Puts the real ones of (G, T, n, d) to their places in (N, n, d)."""
    flat = out[block.first : block.first + sum(block.lengths)]
    if _square(block):
        flat.view(x.shape).copy_(x)
    else:
        flat.copy_(x[block.places()[1]])
