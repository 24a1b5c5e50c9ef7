"""Products with a weight that is used many times, in the layout that this CPU multiplies fastest."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cpu_grpo.kernels.build import Native, native

Product = Callable[[torch.Tensor], torch.Tensor]  # (n, in) -> (n, out)

NARROW = 128  # rows up to which our own product is considered: oneDNN's is made for more
MUCH = 1.3  # faster than ours is oneDNN's before it is taken: a choice that noise could turn would change results
PROBES = 12  # weights of SHAPE, more than caches hold: decoding finds its weights in memory
SHAPE = (3072, 576)


def product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> Product:
    """x -> x @ weight.T + bias, in weight's dtype.

    Args:
        weight: (out, in), copied to another layout where that pays, else used as it is.
        bias: (out,).
        rows: about how many x will have.
    """
    kernels = native(weight.dtype)
    if kernels and kernels.panel and rows <= NARROW and weight.size(1) % 2 == 0 and _narrow_pays(weight.dtype, rows):
        return Narrow.of(kernels, weight, bias)
    return _library(weight, bias, rows)


@dataclass(frozen=True)
class Narrow:
    """By products.cpp: 1.3 to 2.5 times as fast as oneDNN for 1 to 64 rows on a CPU with AVX-512 bf16 (docs/log.md)."""

    kernels: Native
    packed: torch.Tensor  # (panels, in / 2, panel), pairs of bf16 as int32
    bias: torch.Tensor  # (panels * panel,) in fp32
    outs: int

    @staticmethod
    def of(kernels: Native, weight: torch.Tensor, bias: torch.Tensor | None) -> "Narrow":
        outs, ins = weight.shape
        panels = -(-outs // kernels.panel)
        padding = panels * kernels.panel - outs
        if padding:
            weight = torch.cat([weight, weight.new_zeros(padding, ins)])
        pairs = weight.contiguous().view(torch.int32).view(panels, kernels.panel, ins // 2)
        shift = torch.zeros(panels * kernels.panel)
        if bias is not None:
            shift[:outs] = bias
        return Narrow(kernels, pairs.transpose(1, 2).contiguous(), shift, outs)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        out = x.new_empty(x.size(0), self.outs)
        self.kernels.narrow_product(x, self.packed, self.bias, out, *x.shape, self.outs)
        return out


def _library(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> Product:
    if not _prepacks(weight.dtype):
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    # oneDNN's own layout saves reordering the weight at every call: up to 3 times faster from 8 to 128 rows, 1.1 times
    # for thousands.
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: linear(x, laid_out, bias, "none", [], "")


def _prepacks(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def _narrow_pays(dtype: torch.dtype, rows: int) -> bool:
    """Whether oneDNN is not much faster for so many rows, as it may be on CPUs with matrix units; measured in 0.1 s."""
    weights = [torch.ones(SHAPE, dtype=dtype) for _ in range(PROBES)]
    x = torch.ones(rows, SHAPE[1], dtype=dtype)
    ours = _seconds([Narrow.of(native(dtype), weight, None) for weight in weights], x)
    return ours < MUCH * _seconds([_library(weight, None, rows) for weight in weights], x)


def _seconds(products: list[Product], x: torch.Tensor) -> float:
    """Of using each once: the best of three times."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for multiply in products:
            multiply(x)
        best = min(best, time.perf_counter() - start)
    return best
