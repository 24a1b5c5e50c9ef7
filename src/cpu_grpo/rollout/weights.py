"""A decoder's projections laid out for small batches, in the precision that a rollout computes in."""

from dataclasses import dataclass

import torch

from cpu_grpo.decoder import Decoder, Linear, Norm
from cpu_grpo.hardware import DTYPES
from cpu_grpo.kernels.products import Narrow, Product, product

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
    addresses: torch.Tensor | None  # (layers, 12) for the kernel `decode_layers`; None: it cannot take these layers


def packed(decoder: Decoder, precision: str, rows: int) -> PackedDecoder:
    """The decoder ready for batches of about `rows` rows; LoRA adapters are merged in.

    Args:
        precision: of products, fp32 or bf16. Weights that are held in bf16 stay so for products in fp32, too.
    """
    dtype = DTYPES[precision]

    def joint(*parts: Linear, level: int = 0) -> Product:
        return product([part.merged() for part in parts], [part.bias for part in parts], dtype, rows, level)

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
    # The level that scores are less goes through the product; more than one column, as that keeps the rows aligned.
    head = joint(decoder.head, level=LEVEL_COLUMNS)
    return PackedDecoder(decoder, dtype, layers, _norm(decoder.norm), head, _addresses(layers))


def _addresses(layers: tuple[PackedLayer, ...]) -> torch.Tensor | None:
    """Of what decode.cpp reads of each layer, in its order."""
    products = [product for layer in layers for product in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    norms = [norm for layer in layers for norm in (layer.attention_norm, layer.q_norm, layer.k_norm, layer.mlp_norm)]
    if not all(isinstance(product, Narrow) for product in products):
        return None
    if len({product.packed.dtype for product in products}) > 1:
        return None
    if len({norm.eps for norm in norms if norm}) > 1:
        return None

    def of(part: Norm | Narrow | None) -> list[int]:
        if isinstance(part, Narrow):
            return [part.packed.data_ptr(), part.bias.data_ptr()]
        return [part.weight.data_ptr() if part else 0]

    names = ("attention_norm", "qkv", "q_norm", "k_norm", "o", "mlp_norm", "gate_up", "down")
    return torch.tensor([[address for name in names for address in of(getattr(layer, name))] for layer in layers])


def _norm(norm: Norm | None) -> Norm | None:
    """A norm in fp32, whatever the model is held in."""
    return norm and Norm(norm.weight.detach().float().contiguous(), norm.eps)
