"""The differentiable pieces of a decoder layer, in a compute dtype over fp32 master weights.

Each is one autograd node with a hand-written gradient: fewer passes over memory than the chain of nodes that autograd
would record, and products in the compute dtype whatever the masters' dtype is.
"""

from typing import Any

import torch

from cpu_grpo.kernels import fused
from cpu_grpo.kernels.products import Product

PADDING = 32  # columns added to the head: one cache line of bf16, so that rows stay aligned


class MasterLinear(torch.autograd.Function):
    """(x (N, in), forward, backward, masters...) -> forward(x) (N, out).

    `forward` multiplies by the masters side by side and rounded to x's dtype, `backward` by their transpose. Gradients
    go to the masters: first all the weights (out, in), then all the biases (out,).
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, forward: Product, backward: Product, *masters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.transposed, ctx.masters = backward, masters
        return forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        dx = ctx.transposed(gradient) if ctx.needs_input_grad[0] else None
        wanted = ctx.needs_input_grad[3:]
        weights = [m for m in ctx.masters if m.dim() == 2]
        biases = [m for m in ctx.masters if m.dim() == 1]
        found: list[torch.Tensor | None] = [None] * len(ctx.masters)
        if any(wanted[: len(weights)]):
            parts = (gradient.t() @ x).split([w.size(0) for w in weights])  # (out, in)
            found[: len(weights)] = [part.to(w.dtype) for part, w in zip(parts, weights, strict=True)]
        if any(wanted[len(weights) :]):
            parts = gradient.sum(dim=0, dtype=torch.float32).split([b.size(0) for b in biases])
            found[len(weights) :] = [part.to(b.dtype) for part, b in zip(parts, biases, strict=True)]
        return dx, None, None, *(g if want else None for g, want in zip(found, wanted, strict=True))


class AddNorm(torch.autograd.Function):
    """(x (n, H) fp32, delta (n, H) or None, weight (H,), eps, dtype) -> x + delta, and its RMSNorm in `dtype`."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x.clone(memory_format=torch.contiguous_format)
        out, scales = fused.add_norm(total, delta, weight.detach(), eps, dtype)
        ctx.save_for_backward(total, weight, scales)
        ctx.delta = None if delta is None else delta.dtype
        return total, out

    @staticmethod
    def backward(ctx: Any, passed: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        dx, dweight = fused.norm_backward(gradient.contiguous(), x, weight.detach(), scales)
        dx.add_(passed)
        return dx, None if ctx.delta is None else dx.to(ctx.delta), dweight.to(weight.dtype), None, None


class SwiGLU(torch.autograd.Function):
    """(n, 2 I), gates then ups, -> (n, I)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return fused.swiglu(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return fused.swiglu_backward(gradient, *ctx.saved_tensors)


class Rotary(torch.autograd.Function):
    """(x (n, heads, d), cosines (n, d / 2), sines (n, d / 2)) -> x rotated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return fused.rotary(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return fused.rotary(gradient, *ctx.saved_tensors, sign=-1), None, None


class TokenScores(torch.autograd.Function):
    """(states (M, H), head weight from `widened_head`, its master, targets (M,), temperature, chunk)
    -> log-probs of the targets (M,) and entropies in nats (M,), both fp32; entropies without gradient.

    Scores are taken relative to the target's: those that matter are then near zero, where bf16 is fine-grained. As they
    come, around 20, they would be off by 0.03 each. `chunk` rows are projected at a time. Their probabilities are kept
    in the states' dtype for the gradient, which overwrites them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        master: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        chunk: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logps, entropies, kept = [], [], []
        for some, ids in zip(states.split(chunk), targets.split(chunk), strict=True):
            scored = fused.token_scores(_relative_scores(some, weight, ids), ids, temperature)
            logps.append(scored[0])
            entropies.append(scored[1])
            if any(ctx.needs_input_grad):
                kept.append(scored[2])
        ctx.save_for_backward(states, weight, targets)
        ctx.kept, ctx.temperature, ctx.master = kept, temperature, master
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logps), entropy

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, targets = ctx.saved_tensors
        if ctx.kept is None:
            raise RuntimeError("The gradient of token scores can be taken once: it overwrites what it needs.")
        kept, ctx.kept = ctx.kept, None
        scale = (gradient / ctx.temperature).to(states.dtype)[:, None]  # (M, 1)
        dstates = torch.empty_like(states)
        dweight = None
        first = 0
        while kept:
            inner = kept.pop(0)  # (m, V)
            some = slice(first, first + inner.size(0))
            inner.mul_(-scale[some]).scatter_add_(1, targets[some, None], scale[some])
            torch.mm(inner, weight[:, : states.size(1)], out=dstates[some])
            if ctx.needs_input_grad[2]:
                part = inner.t() @ states[some]  # (V, H)
                dweight = part.to(ctx.master.dtype) if dweight is None else dweight.add_(part)
            first = some.stop
        return dstates, None, dweight, None, None, None


def widened_head(weight: torch.Tensor) -> torch.Tensor:
    """The head's weight (V, H) in the compute dtype, with two columns of ones and some of zeros: (V, H + PADDING)."""
    wide = weight.new_zeros(weight.size(0), weight.size(1) + PADDING)
    wide[:, : weight.size(1)] = weight
    wide[:, weight.size(1) : weight.size(1) + 2] = 1
    return wide


def _relative_scores(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Scores less the target's score: (m, H) by (V, H + PADDING) -> (m, V), subtracted before they are rounded."""
    size = states.size(1)
    target = torch.linalg.vecdot(states.float(), weight[targets, :size].float())  # (m,)
    wide = states.new_zeros(states.size(0), weight.size(1))
    wide[:, :size] = states
    # In two pieces, as one of low precision would not be exact.
    wide[:, size] = -target
    wide[:, size + 1] = -target - wide[:, size].float()
    return torch.nn.functional.linear(wide, weight)
