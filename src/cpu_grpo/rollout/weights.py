"""A decoder's projections laid out for small batches, in the precision that a rollout computes in."""

from dataclasses import dataclass

import torch

from cpu_grpo.decoder import Decoder, Linear, Norm, side_by_side
from cpu_grpo.hardware import DTYPES
from cpu_grpo.kernels.products import Product, product

LEVEL_COLUMNS = 32  # of the head: see forward._head


@dataclass(frozen=True)
class PackedLayer:
    attention_norm: Norm
    qkv: Product
    q_norm: Norm | None
    k_norm: Norm | None
    o: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product


@dataclass(frozen=True)
class PackedDecoder:
    """Copies of the weights as they were when this was made: make another after an update."""

    decoder: Decoder
    dtype: torch.dtype
    layers: tuple[PackedLayer, ...]
    norm: Norm
    head: Product  # takes LEVEL_COLUMNS more than H


def packed(decoder: Decoder, precision: str, rows: int) -> PackedDecoder:
    """The decoder ready for batches of about `rows` rows; LoRA adapters are merged in.

    Args:
        precision: fp32 or bf16.
    """
    dtype = DTYPES[precision]

    def joint(*parts: Linear) -> Product:
        return product(*side_by_side(parts, dtype, merged=True), rows)

    layers = tuple(
        PackedLayer(
            attention_norm=_norm(layer.attention_norm),
            qkv=joint(layer.q, layer.k, layer.v),
            q_norm=_norm(layer.q_norm),
            k_norm=_norm(layer.k_norm),
            o=joint(layer.o),
            mlp_norm=_norm(layer.mlp_norm),
            gate_up=joint(layer.gate, layer.up),
            down=joint(layer.down),
        )
        for layer in decoder.layers
    )
    head = decoder.head.merged().to(dtype)
    ones = head.new_zeros(head.size(0), LEVEL_COLUMNS)
    ones[:, 0] = 1  # the first of the columns is what its scores are less; the others keep the rows aligned
    joined = Linear(torch.cat([head, ones], dim=1), decoder.head.bias)
    return PackedDecoder(decoder, dtype, layers, _norm(decoder.norm), joint(joined))


def _norm(norm: Norm | None) -> Norm | None:
    """A norm in fp32, whatever the model is held in."""
    return norm and Norm(norm.weight.detach().float(), norm.eps)
