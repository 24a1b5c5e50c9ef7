"""Products with a prepared weight: ours for few rows, the library's for many, against double precision."""

import pytest
import torch

from conftest import need_narrow_products
from cpu_grpo.engine.kernels import native, products
from cpu_grpo.engine.kernels.products import product
from cpu_grpo.hardware import DTYPES

BF16 = torch.bfloat16
# Panels are 8 to 48 outputs and blocks 6 or 8 rows: sizes below, at and above both, and several of both.
ROWS = [1, 2, 3, 5, 6, 7, 8, 9, 17, 64, 127, 128, 129, 300]
SIZES = [(1, 2), (16, 2), (17, 6), (33, 6), (47, 64), (48, 64), (49, 64), (130, 576), (5, 1000)]  # outs, ins


PAIRS = [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "bf16")]  # what is computed in, and what weights are stored in


@pytest.fixture(params=PAIRS, ids=" by ".join)
def dtypes(request):
    """Those of our own products that this CPU has."""
    pair = tuple(DTYPES[name] for name in request.param)
    need_narrow_products(*pair)
    return pair


@pytest.fixture
def dtype(dtypes):
    return dtypes[0]


@pytest.fixture
def stored(dtypes):
    return dtypes[1]


@pytest.fixture
def narrow(dtype, stored):
    """Our own product."""
    return lambda weight, bias: products.Narrow.of(native(dtype, stored), stored, [weight], [bias])


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
def test_narrow_products_are_right_at_every_size(narrow, dtype, stored, rows, outs, ins, biased):
    x, weight = drawn(rows, ins, dtype=dtype), drawn(outs, ins, seed=1, dtype=stored)
    bias = drawn(outs, seed=2, dtype=dtype) if biased else None
    right(narrow(weight, bias)(x), x, weight, bias)


@pytest.mark.parametrize("rows", [9, 30])
def test_narrow_products_write_nothing_but_their_result(narrow, dtype, stored, monkeypatch, rows):
    around = torch.full((rows * 50 + 2 * 64,), 7.0, dtype=dtype)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, rows, outs: around[64:-64].view(rows, outs))
    x, weight = drawn(rows, 64, dtype=dtype), drawn(50, 64, seed=1, dtype=stored)
    right(narrow(weight, None)(x), x, weight, None)
    assert (around[:64] == 7).all() and (around[-64:] == 7).all()


def test_narrow_products_keep_a_copy_and_take_strided_rows(narrow, dtype, stored):
    weight = drawn(96, 64, seed=1, dtype=stored)
    kept, multiply = weight.clone(), narrow(weight, None)
    weight.zero_()
    x = drawn(12, 128, dtype=dtype)[:, ::2]
    right(multiply(x), x, kept, None)


IN_PLACE = [(*pair, level) for pair in (*PAIRS, ("bf16", "fp32")) for level in (0, 32)]


@pytest.mark.parametrize(("precision", "stored", "level"), IN_PLACE)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 17, 64])
@pytest.mark.parametrize(("outs", "ins"), [(1, 2), (17, 6), (47, 64), (130, 576), (5, 1001), (7, 2500)])
def test_products_with_weights_where_they_lie_are_right(kernels, precision, stored, rows, outs, ins, level):
    dtype = DTYPES[precision]
    weights = [drawn(size, ins, seed=size, dtype=DTYPES[stored]) for size in (outs, 3)]
    # Torch is given the sum of bias and level in the dtype; nothing in a model has both.
    bias = torch.zeros(3) if level and dtype == BF16 else drawn(3, seed=2, dtype=torch.float32)
    biases = [None, bias.to(DTYPES[stored])]
    x = drawn(rows, ins + level, dtype=dtype)
    found = products.InPlace.of(dtype, weights, biases, level)(x)
    joined = torch.cat(weights).to(dtype)
    if level:
        joined = torch.cat([joined, joined.new_ones(outs + 3, 1), joined.new_zeros(outs + 3, level - 1)], dim=1)
    right(found, x, joined, torch.cat([torch.zeros(outs), biases[1].float()]))


def test_a_level_leaves_small_numbers_that_bf16_can_tell_apart(kernels):
    """Products around 30 less 30: rounded before, they would be off by up to 0.06."""
    weight = drawn(300, 64, seed=1, dtype=BF16)
    weight[:, 0] = 30
    for rows in (4, 100):
        x = drawn(rows, 64, dtype=BF16) / 8
        x[:, 0] = 1
        level = torch.full((rows, 32), -30.0, dtype=BF16)
        found = products.InPlace.of(BF16, [weight], [None], 32)(torch.cat([x, level], dim=1))
        wanted = x.double() @ weight.double().t() - 30
        assert wanted.abs().max() < 8
        torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-4)


def test_products_with_weights_where_they_lie_follow_them(kernels):
    weight, x = drawn(40, 64, seed=1, dtype=torch.float32), drawn(4, 64, dtype=torch.float32)
    multiply = products.InPlace.of(torch.float32, [weight], [None])
    right(multiply(x), x, weight, None)
    weight.mul_(2)
    right(multiply(x), x, weight, None)


@pytest.mark.parametrize(("precision", "stored"), PAIRS)
@pytest.mark.parametrize(("rows", "ins"), [(4, 64), (4, 63), (1000, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_whatever_is_chosen_is_right(precision, stored, rows, ins, biased):
    dtype = DTYPES[precision]
    x, weight = drawn(rows, ins, dtype=dtype), drawn(80, ins, seed=1, dtype=DTYPES[stored])
    bias = drawn(80, seed=2, dtype=dtype) if biased else None
    right(product([weight], [bias], dtype, rows)(x), x, weight, bias)
    right(product([weight.t().contiguous().t()], [bias], dtype, rows)(x), x, weight, bias)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("held", [["fp32"] * 3, ["bf16"] * 3, ["fp32", "bf16", "bf16"]], ids=" ".join)
@pytest.mark.parametrize("rows", [4, 1000])
def test_several_weights_and_a_level_lie_side_by_side(precision, held, rows):
    dtype, outs = DTYPES[precision], [33, 5, 40]
    weights = [drawn(out, 64, seed=out, dtype=DTYPES[name]) for out, name in zip(outs, held, strict=True)]
    biases = [drawn(33, seed=1, dtype=torch.float32), None, drawn(40, seed=2, dtype=torch.float32)]
    x, level = drawn(rows, 64, dtype=dtype), drawn(rows, 1, seed=3, dtype=dtype)
    found = product(weights, biases, dtype, rows, level=32)(torch.cat([x, level.expand(-1, 32)], dim=1))
    joined = torch.cat([torch.cat([weight.float() for weight in weights]), torch.ones(78, 1)], dim=1).to(dtype)
    bias = torch.cat([biases[0], torch.zeros(5), biases[2]]).to(dtype)
    right(found, torch.cat([x, level], dim=1), joined, bias)
    assert found.shape == (rows, 78)


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_weights_held_in_bf16_take_no_more_memory_than_that(dtype, monkeypatch):
    need_narrow_products(dtype)
    monkeypatch.setattr(products, "_narrow_pays", lambda *_: True)
    laid_out = product([drawn(96, 64, dtype=BF16), drawn(96, 64, dtype=BF16)], [None, None], dtype, 8)
    assert laid_out.packed.dtype == BF16
    assert (
        product([drawn(96, 64, dtype=BF16), drawn(96, 64, dtype=torch.float32)], [None, None], dtype, 8).packed.dtype
        == dtype
    )


@pytest.mark.parametrize("held", DTYPES)
def test_packed_weights_lie_as_products_of_pairs_read_them(held):
    """Of bf16 too where this CPU cannot multiply it: (in / 2, panel, 2)."""
    kernels = native(BF16)
    if not kernels:
        pytest.skip("there is no C++ compiler here")
    panel = native(torch.float32).panel  # the same in both
    weight = drawn(panel + 1, 6, dtype=DTYPES[held])
    packed = torch.full((2, 8 * panel), 7.0, dtype=BF16)
    rows = weight.data_ptr() + torch.arange(panel + 1) * 6 * weight.element_size()
    kernels.lay_out(rows, packed, panel + 1, 6, 2, int(held == "bf16"))
    wanted = torch.zeros(2 * panel, 8)
    wanted[: panel + 1, :6], wanted[: panel + 1, 6] = weight, 1
    assert packed.view(2, 4, panel, 2).transpose(1, 2).reshape(2 * panel, 8).equal(wanted.bfloat16())


@pytest.mark.parametrize(("library", "ours"), [(1.0, True), (0.8, True), (0.5, False)])
def test_the_library_is_taken_where_it_is_much_faster(dtype, stored, monkeypatch, library, ours):
    seconds = iter([1.0, library])
    monkeypatch.setattr(products, "_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(products, "chosen", lambda name, measure: measure())
    taken = []
    monkeypatch.setattr(products.Narrow, "of", lambda *_: taken.append("narrow"))
    monkeypatch.setattr(products, "library_product", lambda *_: taken.append("library"))
    product([drawn(80, 64, dtype=stored)], [None], dtype, 8)
    assert taken[-1] == ("narrow" if ours else "library")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [3, 300])
def test_weights_are_left_as_they_lie_where_laying_out_is_off(monkeypatch, precision, rows):
    dtype = DTYPES[precision]
    monkeypatch.setenv("CPU_GRPO_PREPACK", "0")
    monkeypatch.setattr(products.Narrow, "of", lambda *_: pytest.fail("weights were laid out"))
    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", lambda *_: pytest.fail("weights were laid out"))
    x, weight = drawn(rows, 64, dtype=dtype), drawn(48, 64, seed=1, dtype=dtype)
    right(product([weight], [None], dtype, rows)(x), x, weight, None)
