"""Products in 8 bits, against their formula in double precision, by every instruction for bytes that this CPU has."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import need_narrow_products
from cpu_grpo.engine.decoder import Adapter, Linear
from cpu_grpo.engine.kernels import build, native, products
from cpu_grpo.engine.kernels.products import GROUP, int8_product
from cpu_grpo.engine.kernels.toolchain import compiler_here, toolchain
from cpu_grpo.hardware import DTYPES, cpu_flags

BF16 = torch.bfloat16
ROWS = [1, 2, 4, 5, 8, 9, 17, 130]
SIZES = [(1, 1), (16, 64), (17, 63), (47, 65), (48, 128), (50, 576), (97, 1000)]  # outs, ins
# What gcc is told, and the flags of a CPU that runs it: products of bytes differ in each.
MARCHES = {
    "haswell": {"avx2", "fma"},
    "alderlake": {"avx2", "fma", "avx_vnni"},
    "skylake-avx512": {"avx512bw", "avx512vl"},
    "cascadelake": {"avx512bw", "avx512vl", "avx512_vnni"},
}


@pytest.fixture(params=DTYPES)
def dtype(request):
    need_narrow_products(DTYPES[request.param], torch.int8)
    return DTYPES[request.param]


def drawn(*shape, seed=0, dtype=torch.float32):
    """Magnitudes differ much from group to group, as in a real model."""
    draw = torch.Generator().manual_seed(seed)
    wild = torch.randn(shape, generator=draw) * torch.randn(shape[-1], generator=draw).exp()
    return wild.to(dtype)


def rounded(x):
    """The formula's: in double precision, (n, in) -> (n, in)."""
    n, ins = x.shape
    groups = torch.nn.functional.pad(x.float(), (0, -ins % GROUP)).view(n, -1, GROUP)
    highest = groups.abs().amax(dim=-1, keepdim=True)
    # A plain 127 / would be 127 times the reciprocal.
    by = torch.where(highest > 0, torch.full_like(highest, 127) / highest, 0)
    integers = (groups * by).round()
    return (integers.double() * (highest / 127).double()).view(n, -1)[:, :ins]


def fine(x):
    """The formula's for 16 bits."""
    first = rounded(x)
    return first + rounded(x.float() - first.float())


def right(found, x, weight, bias=None, near=rounded):
    wanted = near(x) @ rounded(weight).t() + (0 if bias is None else bias.double())
    scale = (rounded(x).abs() @ rounded(weight).abs().t()).max().item()
    tolerance = 2**-8 if found.dtype == BF16 else 2e-6
    ties = 10 if near is fine else 1  # what is left over is known to a last bit, which may turn a tie
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=1e-6 * ties * scale)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("outs", "ins"), SIZES)
@pytest.mark.parametrize("held", DTYPES)
def test_products_are_those_of_the_rounded_numbers(dtype, rows, outs, ins, held):
    x, weight = drawn(rows, ins, dtype=dtype), drawn(outs, ins, seed=1, dtype=DTYPES[held])
    bias = drawn(outs, seed=2) if outs % 2 else None
    right(int8_product([weight], [bias], dtype)(x), x, weight, bias)


@pytest.mark.parametrize("rows", [1, 9, 130])
@pytest.mark.parametrize(("outs", "ins"), SIZES)
def test_fine_products_keep_16_bits_of_x(dtype, rows, outs, ins):
    x, weight = drawn(rows, ins, dtype=dtype), drawn(outs, ins, seed=1)
    bias = drawn(outs, seed=2)
    right(int8_product([weight], [bias], dtype, fine=True)(x), x, weight, bias, near=fine)


def test_fine_products_are_off_by_the_rounding_of_the_weight_alone():
    need_narrow_products(torch.float32, torch.int8)
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(30, 896, generator=draw), torch.randn(300, 896, generator=draw)
    exact = x.double() @ rounded(weight).t()
    off = [(int8_product([weight], [None], torch.float32, fine=f)(x) - exact).norm() / exact.norm() for f in (0, 1)]
    assert off[1] < 1e-4 < 1e-3 < off[0]


@pytest.mark.parametrize("finely", [True, False])
def test_many_rows_are_multiplied_chunk_by_chunk(dtype, finely):
    x, weight = drawn(300, 4500, dtype=dtype), drawn(50, 4500, seed=1)
    right(int8_product([weight], [None], dtype, fine=finely)(x), x, weight, near=fine if finely else rounded)


@pytest.mark.parametrize("ins", [64, 100])
def test_a_level_is_added_through_columns_of_the_weight(dtype, ins):
    x, weight, level = drawn(5, ins, dtype=dtype), drawn(33, ins, seed=1), 20 * torch.ones(5, 3, dtype=dtype)
    found = int8_product([weight], [None], dtype, level=3, fine=True)(torch.cat([x, level], dim=1))
    columns = torch.tensor([1.0, 0, 0]).expand(33, 3)
    right(found, torch.cat([x, level], dim=1), torch.cat([weight, columns], dim=1), near=fine)


def test_rounding_normal_numbers_costs_less_than_a_hundredth(dtype):
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(30, 896, generator=draw).to(dtype), torch.randn(300, 896, generator=draw)
    exact = x.double() @ weight.double().t()
    error = (int8_product([weight], [None], dtype)(x).double() - exact).norm() / exact.norm()
    assert 0.001 < error < 0.01


def test_several_weights_lie_side_by_side_and_are_kept(dtype):
    weights = [drawn(33, 100, seed=1), drawn(20, 100, seed=2)]
    kept, bias, x = torch.cat(weights).clone(), drawn(20, seed=3), drawn(7, 200, dtype=dtype)[:, ::2]
    multiply = int8_product(weights, [None, bias], dtype)
    for weight in weights:
        weight.zero_()
    right(multiply(x), x, kept, torch.cat([torch.zeros(33), bias]))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_the_numbers_are_nothing_overflows(data):
    """The largest integers of either sign, zeros, and numbers near the ends of fp32 and bf16."""
    need_narrow_products(torch.float32, torch.int8)
    numbers = st.sampled_from([0.0, 1.0, -1.0, 0.5, 127.0, -127.0, 1e-30, -1e-30, 1e15, -1e15])
    ins = data.draw(st.integers(1, 130))
    rows = [data.draw(st.lists(numbers, min_size=ins, max_size=ins)) for _ in range(4)]
    x, weight = torch.tensor(rows[:2]), torch.tensor(rows[2:])
    right(int8_product([weight], [None], torch.float32)(x), x, weight)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_group_of_the_largest_integers_is_summed_up_exactly(dtype, sign):
    x, weight = torch.full((3, 256), 2.0, dtype=dtype), torch.full((50, 256), 4.0 * sign)
    assert int8_product([weight], [None], dtype)(x).eq(2048 * sign).all()


def test_an_adapter_is_merged_before_rounding():
    weight, down, up = drawn(40, 96, dtype=BF16), drawn(4, 96, seed=1), drawn(40, 4, seed=2)
    merged = Linear(weight, None, (Adapter(down, up, 0.01, 0.0),)).merged(torch.float32)
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, weight.float() + 0.01 * up @ down)


def test_a_machine_without_products_of_bytes_says_so(monkeypatch):
    monkeypatch.setattr(products, "native", lambda *_: None)
    with pytest.raises(ValueError, match="no products of 8 bits"):
        int8_product([drawn(4, 4)], [None], BF16)
    assert not products.int8_pays(BF16, BF16, 8)


@pytest.mark.parametrize(("exact", "taken"), [(1.0, False), (1.2, True)])
def test_8_bits_are_taken_where_they_are_faster(monkeypatch, dtype, exact, taken):
    seconds = iter([1.0, exact])
    monkeypatch.setattr(products, "_seconds", lambda *_: next(seconds))
    monkeypatch.setattr(products, "chosen", lambda name, measure: measure())
    monkeypatch.setattr(products, "product", lambda *_: None)
    assert products.int8_pays(dtype, dtype, 8) == taken


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """int8.cpp, compiled for another CPU that this one can stand in for."""

    def compiled(march):
        if compiler_here() is None or not MARCHES[march] <= set(cpu_flags()):
            pytest.skip(f"this machine cannot run what is compiled for {march}")
        source, target = Path(build.__file__).with_name("int8.cpp"), tmp_path_factory.mktemp(march) / "int8.so"
        subprocess.run(toolchain(cpu=march).command([source], target), check=True)
        return ctypes.CDLL(str(target))

    return compiled


@pytest.mark.parametrize("march", MARCHES)
def test_each_instruction_for_bytes_gives_the_same(library, march, monkeypatch):
    found = library(march)
    signatures = build.LAID_OUT_SIGNATURES
    kernels = object.__new__(build.Native)
    kernels.panel = found.narrow_panel_fp32_int8()
    assert kernels.panel == (48 if "avx512bw" in MARCHES[march] else 16)
    for name in ("lay_out", "narrow_product"):
        function = getattr(found, f"{name}_fp32_int8")
        function.argtypes, function.restype = signatures[name], None
        setattr(kernels, name, lambda *given, function=function: build._call(function, *given))
    monkeypatch.setattr(products, "native", lambda *_: kernels)
    for rows, outs, ins in ((1, 1, 1), (5, 33, 100), (9, 130, 576)):
        x, weight = drawn(rows, ins), drawn(outs, ins, seed=1)
        ours = int8_product([weight], [None], torch.float32)(x)
        right(ours, x, weight)
        monkeypatch.undo()
        if native(torch.float32, torch.int8):
            torch.testing.assert_close(ours, int8_product([weight], [None], torch.float32)(x), rtol=1e-5, atol=1e-4)
        monkeypatch.setattr(products, "native", lambda *_: kernels)
