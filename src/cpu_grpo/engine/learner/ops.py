"""The differentiable pieces of a decoder layer, in a compute dtype over master weights of any.

Each is one autograd node with a hand-written gradient: fewer passes over memory than the chain of nodes that autograd
would record, and products in the compute dtype whatever the masters' dtype is.
"""

from typing import Any

import torch

from cpu_grpo.engine.decoder import add_adapter
from cpu_grpo.engine.kernels import fused
from cpu_grpo.engine.kernels.products import Product


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


class AddAdapter(torch.autograd.Function):
    """(out (N, outs), x (N, in), down (r, in), up (size, r), scale, first) -> out + scale * x @ down.T @ up.T.

    In place, and to `size` columns of out, from the `first` on.
    """

    @staticmethod
    def forward(
        ctx: Any, out: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, first: int
    ) -> torch.Tensor:
        low = add_adapter(out[:, first : first + up.size(0)], x, down, up, scale)  # (N, r)
        ctx.mark_dirty(out)
        ctx.save_for_backward(x, low, down, up)
        ctx.scale, ctx.first = scale, first
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, low, down, up = ctx.saved_tensors
        some = gradient[:, ctx.first : ctx.first + up.size(0)]  # (N, size)
        dlow = (some @ up.to(x.dtype)).mul_(ctx.scale)  # (N, r)
        dx = dlow @ down.to(x.dtype) if ctx.needs_input_grad[1] else None
        dup = (some.t() @ low).mul_(ctx.scale)
        return gradient, dx, (dlow.t() @ x).to(down.dtype), dup.to(up.dtype), None, None


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


class Kept(torch.autograd.Function):
    """(x (n, H), delta (n, H) or None, (place (n, H),)) -> x + delta, written to `place`.

    What is kept of each layer for its gradient lies side by side (`places_like`): between the layers' large buffers it
    would keep the next layer from using their space, and memory would grow by such a buffer a layer.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, delta: torch.Tensor | None, places: tuple[torch.Tensor]) -> torch.Tensor:
        ctx.delta = None if delta is None else delta.dtype
        return places[0].copy_(x) if delta is None else torch.add(x, delta, out=places[0])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient, None if ctx.delta is None else gradient.to(ctx.delta), None


def places_like(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """`count` tensors of x's kind that lie side by side; not views, as autograd forbids what is done with them."""
    memory, size = x.new_empty(count * x.numel()).untyped_storage(), x.numel()
    # torch's types know `set_` with strides alone.
    return [x.new_empty(0).set_(memory, number * size, x.shape) for number in range(count)]  # type: ignore[call-overload]


class SwiGLU(torch.autograd.Function):
    """(x (n, 2 I), gates then ups, (place (n, I),) or ()) -> (n, I), in the place if there is one.

    The gradient takes x's place then: for layers that are computed twice, where each backward has an x of its own.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, place: tuple[torch.Tensor, ...]) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.overwrite = bool(place)
        return fused.swiglu(x, *place)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (x,) = ctx.saved_tensors
        return fused.swiglu_backward(gradient, x, ctx.overwrite), None


class Rotary(torch.autograd.Function):
    """(x (n, heads, d), cosines (n, d / 2), sines (n, d / 2)) -> x rotated."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        return fused.rotary(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return fused.rotary(gradient, cos, sin, sign=-1), None, None
