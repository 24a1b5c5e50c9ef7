"""Products with a prepared weight: ours for few rows, the library's for many, against double precision."""

import pytest
import torch

from cpu_grpo.hardware import DTYPES
from cpu_grpo.kernels import native, products
from cpu_grpo.kernels.products import product

BF16 = torch.bfloat16
# Panels are 8 to 48 outputs and blocks 6 or 8 rows: sizes below, at and above both, and several of both.
ROWS = [1, 2, 3, 5, 6, 7, 8, 9, 17, 64, 127, 128, 129, 300]
SIZES = [(1, 2), (16, 2), (17, 6), (33, 6), (47, 64), (48, 64), (49, 64), (130, 576), (5, 1000)]  # outs, ins


@pytest.fixture
def dtype(narrow_precision):
    return DTYPES[narrow_precision]


@pytest.fixture
def narrow(dtype):
    """Our own product, in every dtype in which this CPU has it."""
    return lambda weight, bias: products.Narrow.of(native(dtype), dtype, [weight], [bias])


def drawn(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def right(found, x, weight, bias):
    wanted = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    assert found.dtype == x.dtype
    tolerance = 2**-8 if x.dtype == BF16 else 1e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item() / 8)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outs", "ins"), SIZES)
@pytest.mark.parametrize("biased", [False, True])
def test_narrow_products_are_right_at_every_size(narrow, dtype, rows, outs, ins, biased):
    x, weight = drawn(rows, ins, dtype=dtype), drawn(outs, ins, seed=1, dtype=dtype)
    bias = drawn(outs, seed=2, dtype=dtype) if biased else None
    right(narrow(weight, bias)(x), x, weight, bias)


def test_narrow_products_write_nothing_but_their_result(narrow, dtype, monkeypatch):
    around = torch.full((9 * 50 + 2 * 64,), 7.0, dtype=dtype)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, rows, outs: around[64:-64].view(rows, outs))
    x, weight = drawn(9, 64, dtype=dtype), drawn(50, 64, seed=1, dtype=dtype)
    right(narrow(weight, None)(x), x, weight, None)
    assert (around[:64] == 7).all() and (around[-64:] == 7).all()


def test_narrow_products_keep_a_copy_and_take_strided_rows(narrow, dtype):
    weight = drawn(96, 64, seed=1, dtype=dtype)
    kept, multiply = weight.clone(), narrow(weight, None)
    weight.zero_()
    x = drawn(12, 128, dtype=dtype)[:, ::2]
    right(multiply(x), x, kept, None)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(("rows", "ins"), [(4, 64), (4, 63), (1000, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_whatever_is_chosen_is_right(precision, rows, ins, biased):
    dtype = DTYPES[precision]
    x, weight = drawn(rows, ins, dtype=dtype), drawn(80, ins, seed=1, dtype=dtype)
    bias = drawn(80, seed=2, dtype=dtype) if biased else None
    right(product([weight], [bias], dtype, rows)(x), x, weight, bias)
    right(product([weight.t().contiguous().t()], [bias], dtype, rows)(x), x, weight, bias)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("rows", [4, 1000])
def test_several_weights_and_a_level_lie_side_by_side(precision, rows):
    dtype, outs = DTYPES[precision], [33, 5, 40]
    weights = [drawn(out, 64, seed=out, dtype=torch.float32) for out in outs]
    biases = [drawn(33, seed=1, dtype=torch.float32), None, drawn(40, seed=2, dtype=torch.float32)]
    x, level = drawn(rows, 64, dtype=dtype), drawn(rows, 1, seed=3, dtype=dtype)
    found = product(weights, biases, dtype, rows, level=32)(torch.cat([x, level.expand(-1, 32)], dim=1))
    joined = torch.cat([torch.cat(weights), torch.ones(78, 1)], dim=1).to(dtype)
    bias = torch.cat([biases[0], torch.zeros(5), biases[2]]).to(dtype)
    right(found, torch.cat([x, level], dim=1), joined, bias)
    assert found.shape == (rows, 78)


def test_packed_weights_lie_as_products_of_pairs_read_them():
    """Of bf16 too where this CPU cannot multiply it: (in / 2, panel, 2)."""
    kernels = native(BF16)
    if not kernels:
        pytest.skip("there is no C++ compiler here")
    panel = native(torch.float32).panel  # the same in both
    weight = drawn(panel + 1, 6, dtype=torch.float32)
    packed = torch.full((2, 8 * panel), 7.0, dtype=BF16)
    rows = weight.data_ptr() + torch.arange(panel + 1) * 24
    kernels.lay_out(rows, packed, panel + 1, 6, 2)
    wanted = torch.zeros(2 * panel, 8)
    wanted[: panel + 1, :6], wanted[: panel + 1, 6] = weight, 1
    assert packed.view(2, 4, panel, 2).transpose(1, 2).reshape(2 * panel, 8).equal(wanted.bfloat16())


@pytest.mark.parametrize(("library", "ours"), [(1.0, True), (0.8, True), (0.5, False)])
def test_the_library_is_taken_where_it_is_much_faster(narrow, dtype, monkeypatch, library, ours):
    seconds = iter([1.0, library])
    monkeypatch.setattr(products, "_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(products, "_narrow_pays", products._narrow_pays.__wrapped__)
    taken = []
    monkeypatch.setattr(products.Narrow, "of", lambda *_: taken.append("narrow"))
    monkeypatch.setattr(products, "library_product", lambda *_: taken.append("library"))
    product([drawn(80, 64, dtype=dtype)], [None], dtype, 8)
    assert taken[-1] == ("narrow" if ours else "library")
