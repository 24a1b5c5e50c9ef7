"""The fused passes as functions of tensors: compiled where this machine can, the same in torch where not."""

import torch
from torch.nn import functional

from cpu_grpo.engine.decoder import rotate
from cpu_grpo.engine.kernels.build import native


def add_norm(
    x: torch.Tensor, delta: torch.Tensor | None, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Adds `delta` to the fp32 stream `x` (n, H) in place, and applies RMSNorm.

    Returns:
        x * scale * weight, (n, H) in `dtype`, and scale, (n,) in fp32.
    """
    weight = weight.float()
    wide = x.dtype == torch.float32 and (delta is None or delta.dtype == dtype)
    if wide and (kernels := native(dtype)) and _simple(x, delta, weight):
        out, scales = torch.empty(x.shape, dtype=dtype), torch.empty(x.size(0))
        kernels.norm(x, delta, weight, eps, out, scales, x.size(0), x.size(1))
        return out, scales
    if delta is not None:
        x.add_(delta)
    scales = torch.linalg.vector_norm(x, dim=-1).square_().div_(x.size(-1)).add_(eps).rsqrt_()  # (n,)
    return (x * scales[:, None]).mul_(weight).to(dtype), scales


def norm_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of RMSNorm's input (n, H) and weight (H,), in fp32."""
    weight = weight.float()
    if x.dtype == torch.float32 and (kernels := native(gradient.dtype)) and _simple(gradient, x, weight, scales):
        parts = min(64, x.size(0))
        dx, dweight = torch.empty_like(x), torch.zeros(parts, x.size(1))
        kernels.norm_backward(gradient, x, weight, scales, dx, dweight, x.size(0), x.size(1), parts)
        return dx, dweight.sum(dim=0)
    normed = x * scales[:, None]  # (n, H)
    product = gradient * normed
    dweight = product.sum(dim=0)
    along = product.mul_(weight).mean(dim=-1, keepdim=True)  # (n, 1)
    return (gradient * weight).sub_(normed.mul_(along)).mul_(scales[:, None]), dweight


def swiglu(x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """(n, 2 I), gates then ups, -> silu(gate) * up, (n, I), in `out` if it is given."""
    out = x.new_empty(x.size(0), x.size(1) // 2) if out is None else out
    if (kernels := native(x.dtype)) and _simple(x):
        kernels.swiglu(x, out, *out.shape)
        return out
    gate, up = x.chunk(2, dim=-1)
    return torch.mul(functional.silu(gate), up, out=out)


def swiglu_backward(gradient: torch.Tensor, x: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
    """The gradient of `swiglu`'s input, (n, 2 I); in the input's place, with `overwrite`."""
    if (kernels := native(x.dtype)) and _simple(x, gradient):
        out = x if overwrite else torch.empty_like(x)
        kernels.swiglu_backward(gradient, x, out, *gradient.shape)
        return out
    gate, up = x.chunk(2, dim=-1)
    dgate, dup = torch.ops.aten.silu_backward(gradient * up, gate), functional.silu(gate) * gradient
    return torch.cat([dgate, dup], dim=-1, out=x if overwrite else None)


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, sign: int = 1) -> torch.Tensor:
    """(n, heads, d), rows any stride apart, rotated by angles given as fp32 (n, d / 2); sign -1 rotates back."""
    if (kernels := native(x.dtype)) and x.stride()[1:] == (x.size(2), 1) and _simple(cos, sin):
        out = x.new_empty(x.shape)
        kernels.rotary(x, x.stride(0), cos, sin, sign, out, *x.shape)
        return out
    return rotate(x, cos.to(x.dtype), (sin * sign).to(x.dtype))


def causal_softmax(scores: torch.Tensor, scale: float, times: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention weights in place of scores (b, rep * T, S): query t of T sees the first S - T + 1 + t keys.

    Returns:
        the weights, and the logs of the sums of exps that they were divided by, (b, rep * T) in fp32.
    """
    if (kernels := native(scores.dtype)) and _simple(scores):
        logs = torch.empty(scores.shape[:2])
        count = scores.size(0) * scores.size(1) // times
        kernels.causal_softmax(scores, logs, scale, count, times, scores.size(2))
        return scores, logs
    seen = scores.size(2) - times
    future = torch.full((times, times), float("-inf")).triu_(1)  # (T, T)
    wide = scores.float() * scale
    wide.unflatten(1, (-1, times))[..., seen:].add_(future)
    return scores.copy_(wide.softmax(dim=-1)), wide.logsumexp(dim=-1)


def exps(scores: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention weights that still have to be divided by their sums, in place of scores (b, n, S) that are all seen.

    Returns:
        the exps, the sums to divide by, and the logs of the sums of exps that no maximum was taken from; the latter two
        (b, n) in fp32.
    """
    sums, logs = torch.empty(2, *scores.shape[:2])
    if (kernels := native(scores.dtype)) and _simple(scores):
        kernels.exps(scores, sums, logs, scale, logs.numel(), scores.size(2))
        return scores, sums, logs
    wide = scores.float() * scale
    highest = wide.amax(dim=-1, keepdim=True)
    found = wide.sub_(highest).exp_()
    torch.sum(found, dim=-1, out=sums)
    torch.add(sums.log(), highest.squeeze(-1), out=logs)
    return scores.copy_(found), sums, logs


def softmax_again(scores: torch.Tensor, logs: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention weights in place of scores (b, n, S) that are all seen, whose `logs` (b, n) are known in fp32."""
    if (kernels := native(scores.dtype)) and _simple(scores, logs):
        kernels.softmax_again(scores, logs, scale, logs.numel(), scores.size(2))
        return scores
    return scores.copy_(scores.float().mul_(scale).sub_(logs[..., None]).exp_())


def causal_softmax_backward(
    gradient: torch.Tensor, weights: torch.Tensor, along: torch.Tensor, scale: float, times: int
) -> torch.Tensor:
    """The gradient of the scores, in place of the weights' (b, rep * T, S).

    Args:
        along: (b, rep * T) in fp32, the sum over keys of a weight times its gradient.
    """
    if (kernels := native(weights.dtype)) and _simple(gradient, weights, along):
        count = weights.size(0) * weights.size(1) // times
        kernels.causal_softmax_backward(gradient, weights, along, scale, count, times, weights.size(2))
        return gradient
    return gradient.copy_((gradient.float() - along[..., None]).mul_(weights).mul_(scale))


def token_scores(
    scores: torch.Tensor, targets: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores (m, V), perhaps overwritten, -> log-probs of the targets (m,), entropies (m,), probabilities (m, V)."""
    if (kernels := native(scores.dtype)) and _simple(scores, targets) and targets.dtype == torch.int64:
        logps, entropies = torch.empty(2, scores.size(0))
        kernels.token_scores(scores, targets, 1 / temperature, logps, entropies, *scores.shape)
        return logps, entropies, scores
    wide = scores.float() / temperature  # (m, V)
    highest = wide.amax(dim=-1, keepdim=True)
    chances = wide.softmax(dim=-1)  # (m, V)
    total = highest - chances.amax(dim=-1, keepdim=True).log()  # log of the sum of exps, for a third of its price
    logps = (wide.gather(1, targets[:, None]) - total).squeeze(1)
    entropies = total.squeeze(1) - torch.linalg.vecdot(chances, wide.clamp(min=torch.finfo(torch.float32).min))
    return logps, entropies, chances.to(scores.dtype)


def score_gradient(
    scores: torch.Tensor, targets: torch.Tensor, totals: torch.Tensor, scale: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The gradient of scores (m, B) of a part of the vocabulary, in their place, given that of the targets' log-probs.

    Args:
        targets: (m,) int64, counted from the part's first token; outside 0 to B for those of other parts.
        totals: (m,) fp32, log-sums of the exps of all scores over the temperature.
        scale: (m,) fp32, the log-probs' gradient over the temperature.
    """
    if (kernels := native(scores.dtype)) and _simple(scores, targets, totals, scale):
        kernels.score_gradient(scores, targets, totals, scale, 1 / temperature, *scores.shape)
        return scores
    inner = (scores.float() / temperature).sub_(totals[:, None]).exp_().mul_(-scale[:, None])
    here = ((targets >= 0) & (targets < scores.size(1))).nonzero().squeeze(1)
    inner[here, targets[here]] += scale[here]
    return scores.copy_(inner)


def _simple(*tensors: torch.Tensor | None) -> bool:
    return all(t is None or t.is_contiguous() for t in tensors)
