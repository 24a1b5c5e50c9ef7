"""A packed sequence through the decoder: token log-probs and entropies, differentiable in the master weights."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from cpu_grpo.engine.decoder import Decoder, Layer, Linear, Norm
from cpu_grpo.engine.kernels.products import InPlace, Product, int8_product, library_product, side_by_side
from cpu_grpo.engine.learner.attention import RootPart, TreeAttention
from cpu_grpo.engine.learner.head import Head, TokenScores
from cpu_grpo.engine.learner.ops import AddAdapter, AddNorm, Kept, MasterLinear, Rotary, SwiGLU, places_like
from cpu_grpo.engine.learner.packing import Pack

ROWS = 2048  # about as many tokens as a micro-batch has
MANY = 4096  # tokens until the next update that repay laying out the weights: 0.2 s for 135M parameters
CHUNK = 256  # states projected onto the vocabulary at a time; half of it where memory is to be saved


@dataclass(frozen=True)
class Joint:
    """Projections of the same input side by side, in the compute dtype; the masters stay as they are."""

    forward: Product  # (N, in) -> (N, sum of outs)
    backward: Product  # (N, sum of outs) -> (N, in), the gradient's way back
    parts: tuple[Linear, ...]

    @staticmethod
    def of(dtype: torch.dtype, tokens: int, *parts: Linear, narrow: bool = False) -> "Joint":
        weights, biases = [part.weight.detach() for part in parts], [part.bias for part in parts]
        if narrow:  # scales go along what is summed up, so that the way back has integers of its own
            back = int8_product([torch.cat(weights).t()], [None], dtype)
            return Joint(int8_product(weights, biases, dtype), back, parts)
        if dtype == torch.float32 or all(weight.dtype == dtype for weight in weights):
            return Joint(InPlace.of(dtype, weights, biases), partial(_back, weights), parts)
        weight, bias = side_by_side(weights, biases, dtype)
        if tokens < MANY:
            return Joint(lambda x: torch.nn.functional.linear(x, weight, bias), lambda g: g @ weight, parts)
        return Joint(library_product(weight, bias, ROWS), library_product(weight.t(), None, ROWS), parts)

    def __call__(self, x: torch.Tensor, place: torch.Tensor | None = None, unread: bool = False) -> torch.Tensor:
        """(N, in) -> (N, sum of outs), in `place` if the product can; of any content if it is `unread`."""
        weights = [part.weight for part in self.parts]
        biases = [part.bias for part in self.parts if part.bias is not None]
        out = MasterLinear.apply(x, self._product(place, unread), self.backward, *weights, *biases)
        first = 0
        for part in self.parts:
            for adapter in part.adapters:
                dropped = torch.nn.functional.dropout(x, adapter.dropout) if adapter.dropout else x
                out = AddAdapter.apply(out, dropped, adapter.down, adapter.up, adapter.scale, first)
            first += part.weight.size(0)
        return out

    def _product(self, place: torch.Tensor | None, unread: bool) -> Product:
        if unread:
            outs = sum(part.weight.size(0) for part in self.parts)
            return lambda x: x.new_empty(x.size(0), outs)
        return partial(self.forward, out=place) if isinstance(self.forward, InPlace) else self.forward


def _back(weights: list[torch.Tensor], gradient: torch.Tensor) -> torch.Tensor:
    """A gradient (N, sum of outs) through several weights (out, in), to (N, in), without a copy of them."""
    first, *others = gradient.split([weight.size(0) for weight in weights], dim=1)
    out = first @ weights[0].to(gradient.dtype)
    for some, weight in zip(others, weights[1:], strict=True):
        out.addmm_(some, weight.to(gradient.dtype))
    return out


@dataclass(frozen=True)
class Rounded:
    """A decoder's projections in the compute dtype: made once, used by every micro-batch until the next update."""

    decoder: Decoder
    dtype: torch.dtype
    layers: tuple[tuple[Joint, Joint, Joint, Joint], ...]  # qkv, o, gate and up, down
    head: Head

    @staticmethod
    def of(decoder: Decoder, dtype: torch.dtype, tokens: int, narrow: bool = False) -> "Rounded":
        """For about so many tokens before the weights change.

        Args:
            narrow: weights that do not learn are multiplied in 8 bits (int8.cpp), forward and backward.

        Raises:
            ValueError: this machine has no products of 8 bits.
        """

        def joint(*parts: Linear) -> Joint:
            frozen = not any(part.weight.requires_grad for part in parts)
            return Joint.of(dtype, tokens, *parts, narrow=narrow and frozen)

        layers = tuple(
            (
                joint(layer.q, layer.k, layer.v),
                joint(layer.o),
                joint(layer.gate, layer.up),
                joint(layer.down),
            )
            for layer in decoder.layers
        )
        head = decoder.head.weight
        return Rounded(decoder, dtype, layers, Head.of(head.detach(), dtype, narrow and not head.requires_grad))


@dataclass
class Twice(AbstractContextManager[None]):
    """How a layer is computed that is computed twice; within this context, for the second time.

    Its widest tensors lie where those of every layer do. Made anew they would leave holes that the next layer's do not
    fit into, as small things that stay fall into them, and memory would grow by such a tensor a layer (docs/log.md).
    """

    wide: list[torch.Tensor]  # (N, 2 I) gates and ups, (N, I)
    root: RootPart = field(default_factory=RootPart)
    again: bool = False

    def __enter__(self) -> None:
        self.again = True

    def __exit__(self, *_: Any) -> None:
        self.again = False


def token_scores(
    model: Rounded, pack: Pack, temperature: float, recompute: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies (nats) of the pack's scored tokens, (M,) each in fp32; gradients reach the masters.

    Args:
        recompute: gradient checkpointing: keep each layer's input only, and compute the layer, and the head's scores,
            again in backward.
    """
    decoder = model.decoder
    angles = decoder.rope(pack.positions)  # cosines and sines, (N, d / 2) each
    x = torch.nn.functional.embedding(pack.ids, decoder.embedding).float()  # (N, H)
    delta: torch.Tensor | None = None  # likewise: what the last layer adds to it
    recompute = recompute and torch.is_grad_enabled()
    places = places_like(x, len(decoder.layers)) if recompute else []
    inner = decoder.layers[0].gate.weight.size(0)
    wide = [x.new_empty(x.size(0), size, dtype=model.dtype) for size in (2 * inner, inner)] if recompute else []
    for number, (layer, joints) in enumerate(zip(decoder.layers, model.layers, strict=True)):
        if recompute:
            x, delta = Kept.apply(x, delta, (places[number],)), None
            x, delta = _computed_twice(wide, x, delta, layer, joints, angles, pack, model)
        else:
            x, delta = _layer(x, delta, layer, joints, angles, pack, model)
    last = None if delta is None else delta[pack.states]
    _, states = _norm(x[pack.states], last, decoder.norm, model.dtype)  # (M, H)
    chunk = -(-CHUNK // 2) if recompute else CHUNK
    forget = recompute or not torch.is_grad_enabled()  # autograd's functions cannot tell that no gradient is wanted
    return TokenScores.apply(states, model.head, decoder.head.weight, pack.targets, temperature, chunk, forget)


def _computed_twice(
    wide: list[torch.Tensor], x: torch.Tensor, delta: torch.Tensor | None, layer: Layer, *rest: Any
) -> Any:
    """What `_layer` returns; nothing of it is kept but its input."""
    twice = Twice(wide)
    return checkpoint(
        _layer,
        *(x, delta, layer, *rest, twice),
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), twice),
        preserve_rng_state=_draws(layer),  # else a small thing that stays between large ones that go
    )


def _draws(layer: Layer) -> bool:
    """Whether random numbers decide what a layer returns."""
    parts = (layer.q, layer.k, layer.v, layer.o, layer.gate, layer.up, layer.down)
    return any(adapter.dropout for part in parts for adapter in part.adapters)


def _layer(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    layer: Layer,
    joints: tuple[Joint, Joint, Joint, Joint],
    angles: tuple[torch.Tensor, torch.Tensor],
    pack: Pack,
    model: Rounded,
    twice: Twice | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream (N, H) in fp32 and what the layer before adds to it -> the same of this layer."""
    qkv, o, gate_up, down = joints
    decoder = model.decoder
    x, normed = _norm(x, delta, layer.attention_norm, model.dtype)
    q, k, v = _heads(qkv(normed), decoder)
    q, k = _head_norm(q, layer.q_norm), _head_norm(k, layer.k_norm)
    q, k = Rotary.apply(q, *angles), Rotary.apply(k, *angles)
    part = twice.root if twice else None
    attended = TreeAttention.apply(q, k, v, pack.trees, decoder.attention_scale, part)  # (N, heads, d)
    x, normed = _norm(x, o(attended.flatten(1)), layer.mlp_norm, model.dtype)
    if twice is None:
        return x, down(SwiGLU.apply(gate_up(normed), ()))
    # Not views, which autograd would follow; torch's types do not know that `set_` takes a tensor.
    gates, active = (place.new_empty(0).set_(place) for place in twice.wide)  # type: ignore[call-overload]
    active = SwiGLU.apply(gate_up(normed, gates), (active,))  # (N, I)
    return x, down(active, unread=twice.again)


def _heads(qkv: torch.Tensor, decoder: Decoder) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(N, (heads + 2 kv) d) -> (N, heads, d), (N, kv, d), (N, kv, d)."""
    return qkv.unflatten(1, (-1, decoder.head_dim)).split([decoder.heads, decoder.kv_heads, decoder.kv_heads], dim=1)


def _norm(
    x: torch.Tensor, delta: torch.Tensor | None, norm: Norm, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    return AddNorm.apply(x, delta, norm.weight, norm.eps, dtype)


def _head_norm(x: torch.Tensor, norm: Norm | None) -> torch.Tensor:
    """(N, heads, d), each head by itself, where there is such a norm."""
    if norm is None:
        return x
    return _norm(x.float().flatten(0, 1), None, norm, x.dtype)[1].view(x.shape)
