"""The head: hidden states onto the vocabulary and to log-probs of tokens, a part at a time, and the way back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from cpu_grpo.engine.kernels import fused
from cpu_grpo.engine.kernels.products import LEARNT, Product, add_product, int8_pays, int8_product

BLOCK = 16_384  # tokens of the vocabulary that are taken at a time where their scores are computed again


@dataclass(frozen=True)
class Head:
    """The head's weight as products in `dtype` take it: the master itself, unless that is in fp32 and products are not.

    In bf16 the target's score is subtracted from each row's within the product: those that matter are then near zero,
    where bf16 is fine-grained. As they come, around 20, they would be off by 0.03 each.
    """

    weight: torch.Tensor  # (V, H)
    dtype: torch.dtype
    forward: Product | None = None  # in 8 bits: (m, H) -> (m, V), where that is faster
    backward: Product | None = None  # in 8 bits: (m, V) -> (m, H), if weights are

    @staticmethod
    def of(master: torch.Tensor, dtype: torch.dtype, narrow: bool = False) -> "Head":
        """Of the master (V, H).

        Args:
            narrow: products are in 8 bits, as far as scores stay as exact as in bf16; for a master that does not learn.
        """
        weight = master if dtype == torch.float32 else master.to(dtype)
        if not narrow:
            return Head(weight, dtype)
        fine = dtype == torch.float32 and int8_pays(dtype, master.dtype, LEARNT, fine=True)
        forward = int8_product([master], [None], dtype, fine=True) if fine else None
        return Head(weight, dtype, forward, int8_product([master.t()], [None], dtype))

    def level(self, states: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """States (m, H) and their tokens (m,) -> what is added to all scores of each (m,), or None; and the targets'
        scores as they will come out (m,), in fp32."""
        scores = torch.linalg.vecdot(states.float(), self.weight[targets].float())  # (m,)
        if self.dtype == torch.float32:
            return None, scores
        level = -scores.to(self.dtype)  # the same for all of a row, so that it need not be exact
        return level, scores + level.float()

    @property
    def size_at_once(self) -> int:
        """Tokens whose rows are taken at a time where memory for more is no matter: all, unless they are converted."""
        return self.weight.size(0) if self.weight.dtype == self.dtype else BLOCK

    def blocks(self, size: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """So many tokens' rows of the weight at a time, in the dtype of products."""
        for first in range(0, self.weight.size(0), size):
            part = slice(first, first + size)
            yield part, self.weight[part].to(self.dtype)


class TokenScores(torch.autograd.Function):
    """(states (M, H), head, its master (V, H), targets (M,), temperature, chunk, recompute)
    -> log-probs of the targets (M,) and entropies in nats (M,), both fp32; entropies without gradient.

    `chunk` rows are projected at a time. Their probabilities are kept in the states' dtype for the gradient, which
    overwrites them; or they are computed again for it, with `recompute`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        head: Head,
        master: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
        recompute: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logps, entropies, kept = [], [], []
        for some, ids in zip(states.split(chunk), targets.split(chunk), strict=True):
            logp, entropy, chances = fused.token_scores(_scores(head, some, ids), ids, temperature)
            logps.append(logp)
            entropies.append(entropy)
            if any(ctx.needs_input_grad) and not recompute:
                kept.append(chances)
            del chances  # else it would live beside the next chunk's
        logp, entropy = torch.cat(logps), torch.cat(entropies)
        ctx.save_for_backward(states, targets, logp)
        ctx.head, ctx.master, ctx.temperature, ctx.chunk = head, master, temperature, chunk
        ctx.recompute, ctx.kept = recompute, kept
        ctx.mark_non_differentiable(entropy)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.kept is None and not ctx.recompute:
            raise RuntimeError("The gradient of token scores can be taken once: it overwrites what it needs.")
        by_blocks = ctx.recompute and ctx.head.backward is None
        found = (_gradient_by_blocks if by_blocks else _gradient_by_chunks)(ctx, gradient)
        dstates, dmaster = found
        return dstates, None, dmaster, None, None, None, None


def _scores(head: Head, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(m, H) and (m,) -> (m, V), each row's less a number of its own."""
    if head.forward is not None:
        return head.forward(states)
    level, _ = head.level(states, targets)
    out = states.new_empty(states.size(0), head.weight.size(0))
    for part, block in head.blocks(head.size_at_once):
        add_product(out[:, part], states, block, level=level)
    return out


def _gradient_by_chunks(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Of the states and the master, a chunk of states at a time."""
    states, head = ctx.saved_tensors[0], ctx.head
    dstates, dmaster = torch.zeros_like(states), None
    for some, inner in _score_gradients(ctx, gradient):
        if head.backward is not None:  # of a master that does not learn
            dstates[some] = head.backward(inner)
            continue
        for part, block in head.blocks(head.size_at_once):
            dstates[some].addmm_(inner[:, part], block)
        if not ctx.needs_input_grad[2]:
            continue
        if dmaster is None:
            dmaster = (inner.t() @ states[some]).float()  # (V, H)
        elif inner.dtype == torch.float32:
            dmaster.addmm_(inner.t(), states[some])
        else:
            dmaster.add_(inner.t() @ states[some])
    return dstates, None if dmaster is None else dmaster.to(ctx.master.dtype)


def _score_gradients(ctx: Any, gradient: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Each chunk of states, and the gradient of its scores (m, V): from the probabilities that were kept, or from
    scores that are computed again."""
    states, targets, logps = ctx.saved_tensors
    kept, ctx.kept = ctx.kept, None
    scale = gradient / ctx.temperature  # (M,)
    for first in range(0, states.size(0), ctx.chunk):
        some = slice(first, first + ctx.chunk)
        if ctx.recompute:
            scores = _scores(ctx.head, states[some], targets[some])  # (m, V)
            chosen = scores.gather(1, targets[some, None]).squeeze(1).float()  # (m,)
            totals = chosen / ctx.temperature - logps[some]
            yield some, fused.score_gradient(scores, targets[some], totals, scale[some], ctx.temperature)
        else:
            by = scale[some, None].to(states.dtype)
            yield some, kept.pop(0).mul_(-by).scatter_add_(1, targets[some, None], by)


def _gradient_by_blocks(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same from scores that are computed again: a block of the vocabulary at a time, for all states."""
    states, targets, logps = ctx.saved_tensors
    head, master = ctx.head, ctx.master
    level, target_scores = head.level(states, targets)
    totals = target_scores / ctx.temperature - logps  # (M,) log-sums of the exps of scores over the temperature
    scale = gradient / ctx.temperature  # (M,)
    dstates, dmaster = torch.zeros_like(states), None
    if ctx.needs_input_grad[2]:
        dmaster = master.new_empty(master.shape)
    for part, block in head.blocks(BLOCK):
        scores = add_product(states.new_empty(states.size(0), block.size(0)), states, block, level=level)  # (M, B)
        inner = fused.score_gradient(scores, targets - part.start, totals, scale, ctx.temperature)
        dstates.addmm_(inner, block)
        if dmaster is not None:
            dmaster[part] = inner.t() @ states
    return dstates, dmaster
