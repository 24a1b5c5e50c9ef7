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

SCORES = 1 << 22  # of queries with the root's keys, that exist at a time
LONG = 256  # tokens of a root from which on attending to it twice costs more time than keeping its part is worth memory


@dataclass(frozen=True)
class Block:
    """G sequences of ragged lengths, packed one after the other, that all see the `shared` tokens from `start` on.

    For the products they lie side by side at the longest's length T. What that adds to a shorter one comes after its
    end, so causality hides it as keys, and its queries' results are dropped.
    """

    start: int
    shared: int  # P
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
    root = _root(trees)
    found = [Block(0, 0, 0, (root,))] if root else []
    for tree in trees:
        found.append(Block(0, 0, tree.start, (tree.prompt,)))
        if tree.lengths:
            found.append(Block(tree.start, tree.prompt, tree.start + tree.prompt, tree.lengths))
    return found


def _root(trees: tuple[Tree, ...]) -> int:
    """How many tokens all prompts begin with."""
    return trees[0].root if trees else 0


@dataclass
class RootPart:
    """What attention to a long root gave a layer that is computed twice: found the first time, taken the second."""

    found: tuple[torch.Tensor, torch.Tensor] | None = None  # as `root_forward` returns them

    def attend(self, queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Any:
        """What `root_forward` returns."""
        if self.found:
            found, self.found = self.found, None
            return found
        found = root_forward(queries, k, v, scale)
        self.found = found if k.size(0) >= LONG else None
        return found


class TreeAttention(torch.autograd.Function):
    """(q (N, heads, d), k (N, kv, d), v (N, kv, d), trees, scale, the root's part) -> (N, heads, d); q and k already
    rotated.

    What all prompts begin with, the root, is attended to by everything behind it, without a mask: in one product for
    all of them, of which nothing is kept but the logs of the sums of exps (Dao et al., "FlashAttention", 2022, 3.1: a
    softmax over parts is the parts' softmaxes, weighed by these sums). The rest is computed block by block.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        trees: tuple[Tree, ...],
        scale: float,
        part: RootPart | None = None,
    ) -> torch.Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        logs = q.new_empty(*q.shape[:2], 1, dtype=torch.float32)  # (N, heads, 1)
        saved = []
        for block in blocks(trees):
            queries = _queries(q, block, k.size(1))
            weights, sums = fused.causal_softmax(
                torch.bmm(queries, _keys(k, block).transpose(1, 2)), scale, block.longest
            )
            _put_queries(torch.bmm(weights, _keys(v, block)), out, block, k.size(1))
            _put_queries(sums[..., None], logs, block, k.size(1))
            saved.append(weights)
        root = _root(trees)
        share = logs.new_empty(0)  # (N - R, heads, 1) of the root in all that is attended to
        root_logs = logs.new_empty(0)  # (kv, (N - R) * rep)
        if root:
            attend = part.attend if part else root_forward
            seen, root_logs = attend(_rows(q[root:], k.size(1)), k[:root], v[:root], scale)
            behind, sums = _unrows(seen, q.size(1)), _unrows(root_logs[..., None], q.size(1))
            share = torch.sigmoid(sums - logs[root:])
            out[root:] += (share * (behind - out[root:])).to(out.dtype)
        ctx.save_for_backward(q, k, v, out, share, root_logs, *saved)
        ctx.trees, ctx.scale = trees, scale
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, out, share, root_logs, *saved = ctx.saved_tensors
        dq, dk, dv = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        along = torch.linalg.vecdot(gradient.float(), out.float())[..., None]  # (N, heads, 1)
        root, kv = _root(ctx.trees), k.size(1)
        if root:
            outer, inner = (share * own[root:] for own in (gradient, along))  # of the root's part
            rows = _rows(q[root:], kv), _rows(outer.to(q.dtype), kv), _rows(inner, kv)
            rows_dq, dk[:root], dv[:root] = root_backward(*rows, k[:root], v[:root], root_logs, ctx.scale)
            dq[root:] = _unrows(rows_dq, q.size(1))
            gradient = torch.cat([gradient[:root], gradient[root:] - outer.to(gradient.dtype)])
            along = torch.cat([along[:root], along[root:] - inner])
        weights_of = iter(saved)
        for block in blocks(ctx.trees):
            weights = next(weights_of)  # (kv * G, rep * T, S)
            queries, outer, inner = (_queries(x, block, kv) for x in (q, gradient, along))
            if not _square(block):
                real = _real(block, queries)
                outer, inner = outer.mul_(real), inner.mul_(real)
            _add_keys(torch.bmm(weights.transpose(1, 2), outer), dv, block)
            change = torch.bmm(outer, _keys(v, block).transpose(1, 2))
            change = fused.causal_softmax_backward(change, weights, inner.squeeze(-1), ctx.scale, block.longest)
            _put_queries(torch.bmm(change, _keys(k, block)), dq, block, kv, add=True)
            _add_keys(torch.bmm(change.transpose(1, 2), queries), dk, block)
        return dq, dk, dv, None, None, None


def root_forward(
    queries: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of queries (kv, M, d) to all of k and v (R, kv, d): (kv, M, d), and the logs of the sums (kv, M)."""
    keys, values = k.permute(1, 2, 0).contiguous(), v.transpose(0, 1).contiguous()  # (kv, d, R), (kv, R, d)
    out, logs = torch.empty_like(queries), queries.new_empty(queries.shape[:2], dtype=torch.float32)
    for some in _chunks(queries, k.size(0)):
        weights, sums, logs[:, some] = fused.exps(torch.bmm(queries[:, some], keys), scale)  # (kv, m, R)
        torch.div(torch.bmm(weights, values), sums[..., None], out=out[:, some])
    return out, logs


def root_backward(
    queries: torch.Tensor,
    gradient: torch.Tensor,
    along: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    logs: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `root_forward`'s queries (kv, M, d), keys and values (R, kv, d), given that of its result.

    Args:
        along: (kv, M, 1) in fp32, the sums over keys of a weight times its gradient.
    """
    keys, values = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()  # (kv, R, d)
    turned, dq = keys.transpose(1, 2).contiguous(), torch.empty_like(queries)
    dk, dv = (torch.zeros(keys.shape) for _ in range(2))  # in fp32: sums of many parts
    for some in _chunks(queries, k.size(0)):
        own, outer = queries[:, some], gradient[:, some]
        weights = fused.softmax_again(torch.bmm(own, turned), logs[:, some].contiguous(), scale)  # (kv, m, R)
        dv += torch.bmm(weights.transpose(1, 2), outer)
        change = torch.bmm(outer, values.transpose(1, 2))
        change = fused.causal_softmax_backward(change, weights, along[:, some, 0].contiguous(), scale, 1)
        dq[:, some] = torch.bmm(change, keys)
        dk += torch.bmm(change.transpose(1, 2), own)
    return dq, dk.transpose(0, 1).to(k.dtype), dv.transpose(0, 1).to(v.dtype)


def _chunks(queries: torch.Tensor, keys: int) -> list[slice]:
    """Of rows, such that their scores stay in the caches."""
    step = max(64, SCORES // (queries.size(0) * keys))
    return [slice(first, first + step) for first in range(0, queries.size(1), step)]


def _rows(x: torch.Tensor, kv: int) -> torch.Tensor:
    """(n, heads, d) -> (kv, n * rep, d)."""
    return x.unflatten(1, (kv, -1)).transpose(0, 1).reshape(kv, -1, x.size(-1))


def _unrows(x: torch.Tensor, heads: int) -> torch.Tensor:
    """(kv, n * rep, d) -> (n, heads, d), a view."""
    return x.unflatten(1, (-1, heads // x.size(0))).transpose(0, 1).flatten(1, 2)


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
    """(N, kv, d) -> (kv * G, S, d): the shared tokens, then the sequence's own."""
    own = _side_by_side(x, block).permute(2, 0, 1, 3)  # (kv, G, T, d)
    shared = x[block.start : block.start + block.shared].transpose(0, 1)[:, None]  # (kv, 1, P, d)
    return torch.cat([shared.expand(-1, own.size(1), -1, -1), own], dim=2).flatten(0, 1)


def _real(block: Block, queries: torch.Tensor) -> torch.Tensor:
    """1 for real queries and 0 for what fills short sequences up, shaped to multiply (kv * G, rep * T, d)."""
    real = block.places()[1].to(queries.dtype)  # (G, T)
    groups, times = real.shape
    kv, rep = queries.size(0) // groups, queries.size(1) // times
    return real[None, :, None].expand(kv, groups, rep, times).reshape(kv * groups, rep * times, 1)


def _put_queries(x: torch.Tensor, out: torch.Tensor, block: Block, kv: int, add: bool = False) -> None:
    """Puts (kv * G, rep * T, d) back to its places in (N, heads, d), or adds it there."""
    groups, size = len(block.lengths), out.size(-1)
    x = x.view(kv, groups, -1, block.longest, size).permute(1, 3, 0, 2, 4).flatten(2, 3)  # (G, T, heads, d)
    _put(x, out, block, add)


def _add_keys(x: torch.Tensor, out: torch.Tensor, block: Block) -> None:
    """Adds (kv * G, S, d) to (N, kv, d): the shared tokens' summed over the sequences that see them."""
    x = x.unflatten(0, (-1, len(block.lengths)))  # (kv, G, S, d)
    shared = x[:, :, : block.shared].sum(dim=1).transpose(0, 1)  # (P, kv, d)
    _put(x[:, :, block.shared :].permute(1, 2, 0, 3), out, block, add=True)
    out[block.start : block.start + block.shared] += shared


def _put(x: torch.Tensor, out: torch.Tensor, block: Block, add: bool) -> None:
    """Puts the real ones of (G, T, n, d) to their places in (N, n, d), or adds them there."""
    flat = out[block.first : block.first + sum(block.lengths)]
    place, found = (flat.view(x.shape), x) if _square(block) else (flat, x[block.places()[1]])
    if add:
        place += found
    else:
        place.copy_(found)
