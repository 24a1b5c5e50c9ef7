"""The head: hidden states onto the vocabulary, a chunk of them at a time, to log-probs of tokens, and the way back."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from cpu_grpo.kernels import fused

PADDING = 32  # columns added to a widened head: one cache line of bf16, so that rows stay aligned
BLOCK = 16_384  # tokens of the vocabulary whose weights are converted at a time


class Head(Protocol):
    """Multiplies by the head's weight in the compute dtype."""

    def scores(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """States (m, H) and their tokens (m,) -> scores (m, V), each row's less a number of its own."""

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The scores' gradient (m, V) -> the states' (m, H)."""


def head_of(weight: torch.Tensor, dtype: torch.dtype) -> Head:
    """The head for products in `dtype` of its master (V, H)."""
    return WidenedHead.of(weight.to(dtype)) if dtype == torch.bfloat16 else PlainHead(weight, dtype)


@dataclass(frozen=True)
class PlainHead:
    """Without a copy of the master: where its dtype is another than that of products, converted block by block."""

    master: torch.Tensor  # (V, H)
    dtype: torch.dtype

    def scores(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        out = states.new_empty(states.size(0), self.master.size(0))
        size, blocks = self._blocks()
        for some, block in zip(out.split(size, dim=1), blocks, strict=True):
            torch.mm(states, block.to(self.dtype).t(), out=some)
        return out

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        out = gradient.new_zeros(gradient.size(0), self.master.size(1))
        size, blocks = self._blocks()
        for some, block in zip(gradient.split(size, dim=1), blocks, strict=True):
            out.addmm_(some, block.to(self.dtype))
        return out

    def _blocks(self) -> tuple[int, tuple[torch.Tensor, ...]]:
        size = self.master.size(0) if self.master.dtype == self.dtype else BLOCK
        return size, self.master.split(size)


@dataclass(frozen=True)
class WidenedHead:
    """Takes scores relative to the target's, so that those which matter are near zero, where bf16 is fine-grained.

    As they come, around 20, they would be off by 0.03 each. Columns of ones subtract the target's within the product.
    """

    weight: torch.Tensor  # (V, H + PADDING)

    @staticmethod
    def of(weight: torch.Tensor) -> "WidenedHead":
        """(V, H) with two columns of ones and some of zeros."""
        wide = weight.new_zeros(weight.size(0), weight.size(1) + PADDING)
        wide[:, : weight.size(1)] = weight
        wide[:, weight.size(1) : weight.size(1) + 2] = 1
        return WidenedHead(wide)

    @property
    def _narrow(self) -> torch.Tensor:
        return self.weight[:, :-PADDING]

    def scores(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        size = states.size(1)
        target = torch.linalg.vecdot(states.float(), self._narrow[targets].float())  # (m,)
        wide = states.new_zeros(states.size(0), self.weight.size(1))
        wide[:, :size] = states
        # In two pieces, as one of low precision would not be exact.
        wide[:, size] = -target
        wide[:, size + 1] = -target - wide[:, size].float()
        return torch.nn.functional.linear(wide, self.weight)

    def back(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient @ self._narrow


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
            scored = fused.token_scores(head.scores(some, ids), ids, temperature)
            logps.append(scored[0])
            entropies.append(scored[1])
            if any(ctx.needs_input_grad) and not recompute:
                kept.append(scored[2])
        ctx.save_for_backward(states, targets)
        ctx.head, ctx.master, ctx.temperature, ctx.chunk = head, master, temperature, chunk
        ctx.kept = None if recompute else kept
        ctx.recompute = recompute
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logps), entropy

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, targets = ctx.saved_tensors
        if ctx.kept is None and not ctx.recompute:
            raise RuntimeError("The gradient of token scores can be taken once: it overwrites what it needs.")
        kept, ctx.kept = ctx.kept, None
        scale = (gradient / ctx.temperature).to(states.dtype)[:, None]  # (M, 1)
        dstates = torch.empty_like(states)
        dmaster = None
        for first in range(0, states.size(0), ctx.chunk):
            part = slice(first, first + ctx.chunk)
            some, ids = states[part], targets[part]
            chances = (
                fused.token_scores(ctx.head.scores(some, ids), ids, ctx.temperature)[2]
                if ctx.recompute
                else kept.pop(0)
            )  # (m, V)
            inner = chances.mul_(-scale[part]).scatter_add_(1, ids[:, None], scale[part])
            dstates[part] = ctx.head.back(inner)
            if ctx.needs_input_grad[2]:
                dmaster = _added(dmaster, inner, some)
        return dstates, None, dmaster if dmaster is None else dmaster.to(ctx.master.dtype), None, None, None, None


def _added(total: torch.Tensor | None, gradient: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The weight's gradient so far (V, H) and that of a chunk, by its scores (m, V) and states (m, H)."""
    if total is None:
        return (gradient.t() @ states).float()
    if gradient.dtype == total.dtype:
        return total.addmm_(gradient.t(), states)
    return total.add_(gradient.t() @ states)
