"""The differentiable pieces of a decoder layer, in a compute dtype over fp32 master weights.

Each is one autograd node with a hand-written gradient: fewer passes over memory than the chain of nodes that autograd
would record, and products in the compute dtype whatever the masters' dtype is.
"""

from typing import Any

import torch

from cpu_grpo.kernels import fused
from cpu_grpo.kernels.products import Product


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
