"""What a decoder-only transformer is made of, read from a transformers model: tensors for the engine to compute with.

Nothing is copied: the tensors are the model's own parameters, so a `Decoder` made before an update is current after it.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ARCHITECTURES = ("llama", "qwen2", "qwen3")
ROPES = ("default", "linear", "llama3", "yarn")  # their frequencies do not depend on the input


class UnsupportedModel(Exception):
    """The fast path cannot compute this model; the message names the reason."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA pair: adds scale * (x @ down.T) @ up.T."""

    down: torch.Tensor  # (r, in)
    up: torch.Tensor  # (out, r)
    scale: float
    dropout: float


def add_adapter(out: torch.Tensor, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """Adds an adapter's share to a projection's out (N, out) of x (N, in), in place; returns x @ down.T, (N, r)."""
    low = x @ down.to(x.dtype).t()
    out.addmm_(low, up.to(x.dtype).t(), alpha=scale)
    return low


@dataclass(frozen=True)
class Linear:
    """y = x @ weight.T + bias, and what the active adapters add to it."""

    weight: torch.Tensor  # (out, in)
    bias: torch.Tensor | None  # (out,)
    adapters: tuple[Adapter, ...] = ()

    def merged(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight with its adapters added, (out, in), outside any gradient; in `dtype` where there are adapters."""
        weight = self.weight.detach()
        weight = weight.to(dtype) if dtype and self.adapters else weight
        for adapter in self.adapters:
            up, down = adapter.up.detach().to(weight.dtype), adapter.down.detach().to(weight.dtype)
            weight = torch.addmm(weight, up, down, alpha=adapter.scale)
        return weight


@dataclass(frozen=True)
class Norm:
    """RMSNorm."""

    weight: torch.Tensor  # (features,)
    eps: float


@dataclass(frozen=True)
class Layer:
    attention_norm: Norm
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    q_norm: Norm | None
    k_norm: Norm | None
    mlp_norm: Norm
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True)
class Decoder:
    embedding: torch.Tensor  # (V, H)
    layers: tuple[Layer, ...]
    norm: Norm
    head: Linear  # (V, H); its weight is `embedding` where the two are tied
    heads: int
    kv_heads: int
    head_dim: int
    inverse_frequencies: torch.Tensor  # (head_dim / 2,)
    rope_scale: float

    @property
    def attention_scale(self) -> float:
        return self.head_dim**-0.5

    def rope(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (n, head_dim / 2) each in fp32, of the rotary angles at `positions` (n,)."""
        angles = positions[:, None].float() * self.inverse_frequencies
        return angles.cos() * self.rope_scale, angles.sin() * self.rope_scale


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding: (n, heads, d) by angles given as (n, d / 2) cosines and sines; pairs are (i, i + d / 2).

    RoFormer, https://arxiv.org/abs/2104.09864, in the layout of transformers' Llama.
    """
    half = x.size(-1) // 2
    cos, sin = cos[:, None], sin[:, None]  # (n, 1, d / 2)
    left, right = x[..., :half], x[..., half:]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    torch.mul(left, cos, out=out[..., :half]).addcmul_(right, sin, value=-1)
    torch.mul(right, cos, out=out[..., half:]).addcmul_(left, sin)
    return out


def decoder(model: nn.Module) -> Decoder:
    """The parts of a transformers causal language model, with or without LoRA adapters through PEFT.

    Raises:
        UnsupportedModel: an architecture, adapter or option that the fast path does not compute.
    """
    given: Any = model
    causal = given.get_base_model() if hasattr(given, "get_base_model") else given
    config = causal.config
    _check(config)
    body = causal.get_decoder()
    if type(body.embed_tokens) is not nn.Embedding:
        raise UnsupportedModel(f"its embedding is a {type(body.embed_tokens).__name__}")
    rotary, head = body.rotary_emb, _linear(causal.get_output_embeddings())
    if head.adapters:
        raise UnsupportedModel("its head has an adapter")
    return Decoder(
        embedding=body.embed_tokens.weight,
        layers=tuple(_layer(block) for block in body.layers),
        norm=_norm(body.norm),
        head=head,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=body.layers[0].self_attn.head_dim,
        inverse_frequencies=rotary.inv_freq.float(),
        rope_scale=rotary.attention_scaling,
    )


def _check(config: Any) -> None:
    if config.model_type not in ARCHITECTURES:
        raise UnsupportedModel(f"its architecture is {config.model_type} (known: {', '.join(ARCHITECTURES)})")
    if config.hidden_act != "silu":
        raise UnsupportedModel(f"its activation is {config.hidden_act}")
    if config.attention_dropout:
        raise UnsupportedModel("it uses attention dropout")
    if (rope := config.rope_parameters["rope_type"]) not in ROPES:
        raise UnsupportedModel(f"its rotary embedding is of type {rope}")
    if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or []):
        raise UnsupportedModel("it has sliding windows")


def _layer(block: Any) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    return Layer(
        attention_norm=_norm(block.input_layernorm),
        q=_linear(attention.q_proj),
        k=_linear(attention.k_proj),
        v=_linear(attention.v_proj),
        o=_linear(attention.o_proj),
        q_norm=_norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        k_norm=_norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        mlp_norm=_norm(block.post_attention_layernorm),
        gate=_linear(mlp.gate_proj),
        up=_linear(mlp.up_proj),
        down=_linear(mlp.down_proj),
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight, module.variance_epsilon)


def _linear(module: Any) -> Linear:
    if type(module) is nn.Linear:
        return Linear(module.weight, module.bias)
    try:
        from peft.tuners.lora.layer import Linear as LoraLinear
    except ImportError:
        LoraLinear = ()
    if not isinstance(module, LoraLinear) or type(module.get_base_layer()) is not nn.Linear:
        raise UnsupportedModel(f"a projection is a {type(module).__name__}")
    base = module.get_base_layer()
    return Linear(base.weight, base.bias, () if module.disable_adapters or module.merged else _adapters(module))


def _adapters(module: Any) -> tuple[Adapter, ...]:
    active = [name for name in module.active_adapters if name in module.lora_A]
    if any(name in module.lora_variant for name in active):
        raise UnsupportedModel("an adapter is a variant of LoRA")
    if any(module.lora_bias[name] for name in active):
        raise UnsupportedModel("an adapter has a bias")
    return tuple(
        Adapter(
            down=module.lora_A[name].weight,
            up=module.lora_B[name].weight,
            scale=module.scaling[name],
            dropout=getattr(module.lora_dropout[name], "p", 0.0) if module.training else 0.0,
        )
        for name in active
    )
