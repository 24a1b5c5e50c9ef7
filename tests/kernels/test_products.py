"""Products with a prepared weight: ours for few rows, the library's for many, against double precision."""

import pytest
import torch

from cpu_grpo.kernels import products
from cpu_grpo.kernels.products import product

BF16 = torch.bfloat16
# Panels are 48 outputs and blocks 8 rows: sizes below, at and above both, and several of both.
ROWS = [1, 2, 3, 7, 8, 9, 17, 64, 127, 128, 129, 300]
SIZES = [(1, 2), (16, 2), (33, 6), (47, 64), (48, 64), (49, 64), (130, 576), (5, 1000)]  # outs, ins


@pytest.fixture
def narrow(narrow_kernels):
    """Our own product, wherever this CPU has it."""
    return lambda weight, bias: products.Narrow.of(narrow_kernels, weight, bias)


def drawn(*shape, seed=0, dtype=BF16):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def right(found, x, weight, bias):
    wanted = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert found.dtype == x.dtype
    tolerance = 2**-8 if x.dtype == BF16 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item() / 8)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outs", "ins"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_narrow_products_are_right_at_every_size(narrow, rows, outs, ins, biased):
    x, weight = drawn(rows, ins), drawn(outs, ins, seed=1)
    bias = drawn(outs, seed=2) if biased else None
    right(narrow(weight, bias)(x), x, weight, bias)


def test_narrow_products_write_nothing_but_their_result(narrow, monkeypatch):
    around = torch.full((9 * 50 + 2 * 64,), 7.0, dtype=BF16)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, rows, outs: around[64:-64].view(rows, outs))
    x, weight = drawn(9, 64), drawn(50, 64, seed=1)
    right(narrow(weight, None)(x), x, weight, None)
    assert (around[:64] == 7).all() and (around[-64:] == 7).all()


def test_narrow_products_keep_a_copy_and_take_strided_rows(narrow):
    weight = drawn(96, 64, seed=1)
    kept, multiply = weight.clone(), narrow(weight, None)
    weight.zero_()
    x = drawn(12, 128)[:, ::2]
    right(multiply(x), x, kept, None)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize(("rows", "ins"), [(4, 64), (4, 63), (1000, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_whatever_is_chosen_is_right(dtype, rows, ins, biased):
    x, weight = drawn(rows, ins, dtype=dtype), drawn(80, ins, seed=1, dtype=dtype)
    bias = drawn(80, seed=2, dtype=dtype) if biased else None
    right(product(weight, bias, rows)(x), x, weight, bias)
    right(product(weight.t().contiguous().t(), bias, rows)(x), x, weight, bias)


@pytest.mark.parametrize(("library", "ours"), [(1.0, True), (0.8, True), (0.5, False)])
def test_the_library_is_taken_where_it_is_much_faster(narrow, monkeypatch, library, ours):
    seconds = iter([1.0, library])
    monkeypatch.setattr(products, "_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(products, "_narrow_pays", products._narrow_pays.__wrapped__)
    taken = []
    monkeypatch.setattr(products.Narrow, "of", lambda *_: taken.append("narrow"))
    monkeypatch.setattr(products, "_library", lambda *_: taken.append("library"))
    product(drawn(80, 64), None, 8)
    assert taken[-1] == ("narrow" if ours else "library")
