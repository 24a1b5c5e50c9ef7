"""A decoder's projections laid out for small batches, in the precision that a rollout computes in."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cpu_grpo.engine.decoder import Decoder, Linear, Norm
from cpu_grpo.engine.kernels import native
from cpu_grpo.engine.kernels.products import (
    FEW,
    InPlace,
    Narrow,
    Product,
    as_fast,
    int8_pays,
    int8_product,
    product,
    storage,
)
from cpu_grpo.hardware import DTYPES

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
    """Copies of the weights as they were when this was made: make another after an update.

    Or the weights themselves, where they are shared.
    """

    decoder: Decoder
    dtype: torch.dtype
    layers: tuple[PackedLayer, ...]
    norm: Norm
    head: Product  # takes LEVEL_COLUMNS more than H
    at_once: "AtOnce | None"  # None: there is no kernel that takes these layers


@dataclass(frozen=True)
class AtOnce:
    """A kernel that decodes through all layers in one call."""

    kernel: Callable[..., None]
    addresses: torch.Tensor  # (layers, what decode.cpp reads of each)
    inner: int  # size between gate_up and down


def packed(decoder: Decoder, precision: str, rows: int, shared: bool = False, rounded: bool = False) -> PackedDecoder:
    """The decoder ready for batches of about `rows` rows, LoRA adapters included.

    Args:
        precision: of products, fp32 or bf16. Weights that are held in bf16 stay so for products in fp32, too.
        shared: leave the weights where they are: no memory, but slower from some 16 rows on. For fewer rows, weights in
            bf16 stay there for products in bf16 anyway.
        rounded: the layers' weights in 8 bits, and their inputs; the head's, with inputs in 16, where that is faster.

    Raises:
        ValueError: this machine has no products of 8 bits.
    """
    dtype = DTYPES[precision]

    def joint(*parts: Linear, level: int = 0) -> Product:
        if rounded and not level:
            # Merged in fp32, an adapter's change moves some weights by a step of the 8 bits, and its sum stays.
            return int8_product([part.merged(torch.float32) for part in parts], [part.bias for part in parts], dtype)
        # In bf16 an adapter's small changes would be rounded away.
        apart = shared or any(part.weight.dtype == torch.bfloat16 for part in parts)
        weights = [part.weight.detach() if apart else part.merged() for part in parts]
        biases = [part.bias for part in parts]
        in_place = shared or (rows <= FEW and as_fast(dtype, weights))
        if rounded and not in_place and int8_pays(dtype, storage(weights, dtype), rows, fine=True):
            return int8_product(weights, biases, dtype, level, fine=True)
        base = InPlace.of(dtype, weights, biases, level) if in_place else product(weights, biases, dtype, rows, level)
        return _adapted(base, parts, dtype) if apart and any(part.adapters for part in parts) else base

    layers = tuple(
        PackedLayer(
            attention_norm=_wide(layer.attention_norm),
            qkv=joint(layer.q, layer.k, layer.v),
            q_norm=layer.q_norm and _wide(layer.q_norm),
            k_norm=layer.k_norm and _wide(layer.k_norm),
            o=joint(layer.o),
            mlp_norm=_wide(layer.mlp_norm),
            gate_up=joint(layer.gate, layer.up),
            down=joint(layer.down),
        )
        for layer in decoder.layers
    )
    # The level that scores are less goes through the product; more than one column, as that keeps the rows aligned.
    head = joint(decoder.head, level=LEVEL_COLUMNS)
    return PackedDecoder(decoder, dtype, layers, _wide(decoder.norm), head, _at_once(layers))


def _adapted(base: Product, parts: tuple[Linear, ...], dtype: torch.dtype) -> Product:
    """The projections' product, and what their adapters add to it: of all of them in two products, as small ones cost
    mostly their calls."""
    down = torch.cat([adapter.down.detach() for part in parts for adapter in part.adapters])  # (R, in)
    up = torch.block_diag(*(_ups(part) for part in parts))  # (R, sum of outs), R the sum of ranks
    down, up = down.to(dtype).t(), up.to(dtype)
    return lambda x: base(x).addmm_(x @ down, up)


def _ups(part: Linear) -> torch.Tensor:
    """A projection's adapters' ups, scaled, one below the other: (sum of ranks, out)."""
    none = torch.empty(0, part.weight.size(0))
    return torch.cat([none, *(adapter.scale * adapter.up.detach().t().float() for adapter in part.adapters)])


def _at_once(layers: tuple[PackedLayer, ...]) -> AtOnce | None:
    products = [product for layer in layers for product in (layer.qkv, layer.o, layer.gate_up, layer.down)]
    norms = [norm for layer in layers for norm in (layer.attention_norm, layer.q_norm, layer.k_norm, layer.mlp_norm)]
    if len({norm.eps for norm in norms if norm}) > 1:
        return None
    kernel, inner = _kernel(products), layers[0].down
    if kernel is None or not isinstance(inner, Narrow | InPlace):
        return None
    names = ("attention_norm", "qkv", "q_norm", "k_norm", "o", "mlp_norm", "gate_up", "down")
    rows = [[address for name in names for address in _addresses(getattr(layer, name))] for layer in layers]
    return AtOnce(kernel, torch.tensor(rows), inner.ins)


def _kernel(products: list[Product]) -> Callable[..., None] | None:
    """That takes all these products, if they are of one kind and their weights are stored alike."""
    narrow = [product for product in products if isinstance(product, Narrow)]
    if len(narrow) == len(products):
        alike = len({product.packed.dtype for product in narrow}) == 1
        return narrow[0].kernels.decode_layers if alike else None
    in_place = [product for product in products if isinstance(product, InPlace)]
    if len(in_place) == len(products):
        weights = [weight for product in in_place for weight in product.weights]
        alike = len({weight.dtype for weight in weights}) == 1 and all(weight.is_contiguous() for weight in weights)
        kernels = native(in_place[0].dtype, weights[0].dtype) if alike else None
        return kernels.decode_layers_in_place if kernels else None
    return None


def _addresses(part: Norm | Narrow | InPlace | None) -> list[int]:
    """As decode.cpp has them."""
    if isinstance(part, Narrow):
        return [part.packed.data_ptr(), part.bias.data_ptr()]
    if isinstance(part, InPlace):
        parts = zip(part.weights, part.biases, strict=True)
        found = [(w.data_ptr(), 0 if b is None else b.data_ptr(), w.size(0)) for w, b in parts]
        return [number for three in (found + [(0, 0, 0)] * 2)[:3] for number in three]
    return [part.weight.data_ptr() if part else 0]


def _wide(norm: Norm) -> Norm:
    """A norm in fp32, whatever the model is held in."""
    return Norm(norm.weight.detach().float().contiguous(), norm.eps)
