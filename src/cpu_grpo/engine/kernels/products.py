"""Products with a weight that is used many times, in the layout that this CPU multiplies fastest."""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from cpu_grpo.engine.kernels.build import Native, native
from cpu_grpo.engine.kernels.choices import chosen

Product = Callable[[torch.Tensor], torch.Tensor]  # (n, in) -> (n, out)
Biases = list[torch.Tensor | None]

FEW = 16  # rows up to which products with weights where they lie are as fast as with weights laid out
NARROW = 128  # rows up to which our own product is considered: oneDNN's is made for more
MUCH = 1.3  # faster than ours is oneDNN's before it is taken: a choice that noise could turn would change results
GROUP = 64  # weights in int8 that have a scale together, as int8.cpp has it
INT8_BYTES = 1 + 4 / GROUP  # of a weight in int8, with its share of a scale
INT8_GAIN = 1.1  # times faster that products in 8 bits must be before they are taken
WORD = 4  # bytes that products.cpp takes of a row at a time: a number in fp32, a pair in bf16
LEARNT = 256  # rows that the learner multiplies at least, about
PROBES = 12  # weights of SHAPE, more than caches hold: decoding finds its weights in memory
SHAPE = (3072, 576)


def product(weights: list[torch.Tensor], biases: Biases, dtype: torch.dtype, rows: int, level: int = 0) -> Product:
    """x (n, in + level) -> x @ (weights side by side).T + biases, (n, sum of outs), in `dtype`.

    Args:
        weights: (outs, in) each, in any dtype; copied, in another layout where that pays.
        biases: of each weight, (outs,) or None.
        rows: about how many x will have.
        level: columns to be added to the weights: one of ones, the others of zeros.
    """
    columns, stored = weights[0].size(1) + level, storage(weights, dtype)
    kernels = native(dtype, stored)
    suited = _lays_out() and rows <= NARROW and columns * dtype.itemsize % WORD == 0
    if suited and kernels and kernels.panel and _narrow_pays(kernels, dtype, stored, rows):
        return Narrow.of(kernels, stored, weights, biases, level)
    weight, bias = side_by_side(weights, biases, dtype, level)
    return library_product(weight, bias, rows)


def storage(weights: list[torch.Tensor], dtype: torch.dtype) -> torch.dtype:
    """What weights are stored in for products in `dtype`: bf16 ones stay so, half the bytes and nothing lost."""
    return torch.bfloat16 if all(weight.dtype == torch.bfloat16 for weight in weights) else dtype


def side_by_side(
    weights: list[torch.Tensor], biases: Biases, dtype: torch.dtype, level: int = 0
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One weight (sum of outs, in + level) and bias (sum of outs,) of several, in `dtype`; see `product`."""
    outs, ins = [weight.size(0) for weight in weights], weights[0].size(1)
    joined = torch.empty(sum(outs), ins + level, dtype=dtype)
    for some, weight in zip(joined[:, :ins].split(outs), weights, strict=True):
        some.copy_(weight)
    joined[:, ins:] = 0
    joined[:, ins : ins + 1] = 1
    if all(bias is None for bias in biases):
        return joined, None
    return joined, torch.cat(_filled(weights, biases)).to(dtype)


def _filled(weights: list[torch.Tensor], biases: Biases) -> list[torch.Tensor]:
    """The biases in fp32, zeros for None."""
    pairs = zip(weights, biases, strict=True)
    return [torch.zeros(w.size(0)) if b is None else b.detach().float() for w, b in pairs]


@dataclass(frozen=True)
class Narrow:
    """By products.cpp: for 1 to 64 rows 1.3 to 2.5 times as fast as oneDNN, in bf16 with AVX-512 and in fp32 with AVX2
    (docs/log.md)."""

    kernels: Native
    packed: torch.Tensor  # (panels, in, panel), for products in bf16 (panels, in / 2, panel, 2)
    bias: torch.Tensor  # (panels * panel,) in fp32
    ins: int
    outs: int
    fine: bool = False  # x keeps 16 bits beside weights in 8

    @staticmethod
    def of(
        kernels: Native,
        stored: torch.dtype,
        weights: list[torch.Tensor],
        biases: Biases,
        level: int = 0,
        fine: bool = False,
    ) -> "Narrow":
        """See `product`; `kernels` are those for weights stored so."""
        halves = all(weight.dtype == torch.bfloat16 for weight in weights)
        # Rows are read where they lie, so the products of a layer need no copy but the packed one.
        masters = [weight.detach().to(torch.bfloat16 if halves else torch.float32).contiguous() for weight in weights]
        ins = masters[0].size(1)
        rows = torch.cat([m.data_ptr() + torch.arange(m.size(0)) * ins * m.element_size() for m in masters])  # (outs,)
        outs, panel = rows.numel(), kernels.panel
        panels = -(-outs // panel)
        packed = torch.empty(panels, panel * _stored_numbers(ins + level, stored), dtype=stored)
        kernels.lay_out(rows, packed, outs, ins, level, int(halves))
        shift = torch.zeros(panels * panel)
        if any(bias is not None for bias in biases):
            shift[:outs] = torch.cat(_filled(weights, biases))
        return Narrow(kernels, packed, shift, ins + level, outs, fine)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        out = x.new_empty(x.size(0), self.outs)
        multiply = self.kernels.fine_product if self.fine else self.kernels.narrow_product
        multiply(x, self.packed, self.bias, out, *x.shape, self.outs)
        return out


def _stored_numbers(ins: int, stored: torch.dtype) -> int:
    """That an output's weights are laid out as: in int8 there are whole groups, and a scale in fp32 before each."""
    return -(-ins // GROUP) * (GROUP + 4) if stored == torch.int8 else ins


def int8_available() -> bool:
    """Whether this machine has products of 8 bits."""
    kernels = native(torch.bfloat16, torch.int8)
    return bool(kernels and kernels.panel)


def int8_product(
    weights: list[torch.Tensor], biases: Biases, dtype: torch.dtype, level: int = 0, fine: bool = False
) -> Narrow:
    """`product` with weights and x rounded to 8 bits, a group of inputs at a time; see int8.cpp.

    Args:
        fine: x is rounded to 16 bits, at twice the work.

    Raises:
        ValueError: this machine has no such products.
    """
    kernels = native(dtype, torch.int8)
    if not kernels or not kernels.panel:
        raise ValueError("This machine has no products of 8 bits.")
    return Narrow.of(kernels, torch.int8, weights, biases, level, fine)


def int8_pays(dtype: torch.dtype, stored: torch.dtype, rows: int, fine: bool = False) -> bool:
    """Whether products in 8 bits are faster for so many rows than those in `dtype` of weights stored so; measured."""
    if not int8_available() or not _lays_out():
        return False
    name = f"{'fine ' if fine else ''}int8 {dtype} {stored} {rows}"
    return chosen(name, lambda: _int8_wins(dtype, stored, rows, fine))


def _int8_wins(dtype: torch.dtype, stored: torch.dtype, rows: int, fine: bool) -> bool:
    weights, x = [torch.ones(SHAPE, dtype=stored) for _ in range(PROBES)], torch.ones(rows, SHAPE[1], dtype=dtype)
    ours = _seconds([int8_product([weight], [None], dtype, fine=fine) for weight in weights], x)
    return INT8_GAIN * ours < _seconds([product([weight], [None], dtype, rows) for weight in weights], x)


def as_fast(dtype: torch.dtype, weights: list[torch.Tensor]) -> bool:
    """Whether products in `dtype` of up to FEW rows are about as fast with the weights where they lie."""
    kernels = native(dtype)
    return bool(kernels and kernels.panel) and {dtype, *(weight.dtype for weight in weights)} == {torch.bfloat16}


@dataclass(frozen=True)
class InPlace:
    """Products in `dtype` with weights where they lie, without a copy of any: by rows.cpp while few rows are multiplied
    (docs/log.md has its speed), else by torch, for which weights of another dtype are converted each time."""

    dtype: torch.dtype
    weights: tuple[torch.Tensor, ...]  # (outs, in) each
    biases: tuple[torch.Tensor | None, ...]  # (outs,) each, in fp32
    level: int  # see `product`

    @property
    def ins(self) -> int:
        return self.weights[0].size(1)

    @staticmethod
    def of(dtype: torch.dtype, weights: list[torch.Tensor], biases: Biases, level: int = 0) -> "InPlace":
        """See `product`."""
        wide = (None if bias is None else bias.detach().float() for bias in biases)
        return InPlace(dtype, tuple(weight.detach() for weight in weights), tuple(wide), level)

    def __call__(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        outs = [weight.size(0) for weight in self.weights]
        out = x.new_empty(x.size(0), sum(outs)) if out is None else out
        rows = x[:, : self.ins].contiguous()
        level = x[:, self.ins].float().contiguous() if self.level else None  # (n,)
        for some, weight, bias in zip(out.split(outs, dim=1), self.weights, self.biases, strict=True):
            kernels = native(self.dtype, weight.dtype)
            if kernels and x.size(0) <= FEW and weight.is_contiguous():
                kernels.row_product(rows, weight, bias, level, some, *rows.shape, weight.size(0), out.size(1))
            else:
                add_product(some, rows, weight, bias, level)
        return out


def add_product(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    level: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fills out (n, outs) with x (n, in) @ weight (outs, in).T + bias (outs,) + level (n, 1 to each row), by torch.

    A level near what the products come to leaves small numbers: they are summed up in fp32 and rounded once, so bf16
    tells them apart where it could not tell the products.
    """
    weight = weight.to(x.dtype).t()
    starts = [start for start in (bias, None if level is None else level[:, None]) if start is not None]
    if not starts:
        return torch.mm(x, weight, out=out)
    out.copy_(functools.reduce(torch.add, starts))
    return out.addmm_(x, weight)


def library_product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int) -> Product:
    """x (n, in) -> x @ weight.T + bias, (n, outs), by torch or oneDNN, made for about `rows` rows."""
    if not _prepacks(weight.dtype):
        return lambda x: torch.nn.functional.linear(x, weight, bias)
    # oneDNN's own layout saves reordering the weight at every call: up to 3 times faster from 8 to 128 rows, 1.1 times
    # for thousands.
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    linear = torch.ops.mkldnn._linear_pointwise.default
    return lambda x: linear(x, laid_out, bias, "none", [], "")


def _lays_out() -> bool:
    """Whether weights may be laid out at all: off only to see what that is worth."""
    return os.environ.get("CPU_GRPO_PREPACK") != "0"


def _prepacks(dtype: torch.dtype) -> bool:
    backend = torch.backends.mkldnn
    if not (
        _lays_out() and backend.is_available() and backend.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    ):
        return False
    return dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _narrow_pays(kernels: Native, dtype: torch.dtype, stored: torch.dtype, rows: int) -> bool:
    """Whether oneDNN is not much faster for so many rows, as it may be on CPUs with matrix units; measured in 0.1 s."""
    return chosen(f"narrow {dtype} {stored} {rows}", lambda: _narrow_wins(kernels, dtype, stored, rows))


def _narrow_wins(kernels: Native, dtype: torch.dtype, stored: torch.dtype, rows: int) -> bool:
    weights = [torch.ones(SHAPE, dtype=dtype) for _ in range(PROBES)]
    x = torch.ones(rows, SHAPE[1], dtype=dtype)
    ours = _seconds([Narrow.of(kernels, stored, [weight.to(stored)], [None]) for weight in weights], x)
    return ours < MUCH * _seconds([library_product(weight, None, rows) for weight in weights], x)


def _seconds(products: list[Product], x: torch.Tensor) -> float:
    """Of using each once: the best of three times."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for multiply in products:
            multiply(x)
        best = min(best, time.perf_counter() - start)
    return best
