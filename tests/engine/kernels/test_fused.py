"""The fused passes, compiled and in torch, against naive double precision and its gradients."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cpu_grpo.engine.kernels import build, fused

SIZES = [(1, 1), (1, 16), (3, 7), (17, 33), (2, 100), (150, 48)]  # rows, features
MASKS = [(1, 1, 1, 0), (1, 1, 6, 0), (2, 3, 5, 0), (2, 2, 4, 7), (3, 1, 17, 33), (1, 7, 16, 16), (2, 4, 1, 20)]
WILD = st.one_of(st.sampled_from([0.0, 88.0, -88.0, 104.0, 1e4, -1e4, 1e-30]), st.floats(-1e4, 1e4, width=32))
wild_test = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    return request.param


def each_size(function):
    return pytest.mark.parametrize(("rows", "features"), SIZES)(function)


def each_layout(function):
    return pytest.mark.parametrize("lay", [lambda t: t, strided], ids=["contiguous", "strided"])(function)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided(t):
    """The same values with NaN between any two."""
    return torch.stack([t, torch.full_like(t, math.nan)], dim=-1)[..., 0]


def close(found, wanted, atol=1e-5):
    """Equal but for rounding: of fp32, or of bf16 storage (torch rounds some intermediate results to it, too)."""
    rounded = found.dtype == torch.bfloat16
    scale = max(1.0, wanted[wanted.isfinite()].abs().max().item()) if rounded and wanted.numel() else 1.0
    tolerance = {"rtol": 2**-6, "atol": 2**-8 * scale} if rounded else {"rtol": 1e-5, "atol": atol}
    torch.testing.assert_close(found.double(), wanted.double(), **tolerance)


def gradients(function, gradient, *inputs):
    """Autograd's, in double precision."""
    leaves = [t.double().requires_grad_() for t in inputs]
    return torch.autograd.grad(function(*leaves), leaves, gradient.double())


# ---- RMSNorm -------------------------------------------------------------------------------------------------------


def naive_norm(x, weight, eps=1e-5):
    return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt() * weight


@each_size
@each_layout
@pytest.mark.parametrize("added", [True, False])
def test_norm_adds_in_place_and_normalises(kernels, dtype, rows, features, lay, added):
    x, weight = lay(random(rows, features)), 1 + random(features, seed=1)
    delta = lay(random(rows, features, dtype=dtype, seed=2)) if added else None
    total = x.double() + delta.double() if added else x.double()
    out, scales = fused.add_norm(x, delta, weight, 1e-5, dtype)
    assert out.dtype == dtype
    close(out, naive_norm(total, weight.double()))
    close(scales, (total.square().mean(dim=-1) + 1e-5).rsqrt())
    close(x, total)


def test_a_row_of_zeros_is_normalised_to_zeros(kernels, dtype):
    out, scales = fused.add_norm(torch.zeros(2, 20), None, torch.ones(20), 1e-6, dtype)
    assert torch.equal(out, torch.zeros(2, 20, dtype=dtype))
    close(scales, torch.full((2,), 1e3), atol=1e-2)


@wild_test
@given(st.lists(WILD, min_size=1, max_size=40))
def test_wild_rows_are_normalised(kernels, dtype, values):
    x = torch.tensor([values, values[::-1]])
    weight = 1 + random(len(values))
    wanted = naive_norm(x.double(), weight.double())
    close(fused.add_norm(x, None, weight, 1e-5, dtype)[0], wanted)


@each_size
@each_layout
def test_norm_has_the_gradients_of_autograd(kernels, dtype, rows, features, lay):
    x, weight = random(rows, features), 1 + random(features, seed=1)
    gradient = random(rows, features, dtype=dtype, seed=2)
    scales = (x.square().mean(dim=-1) + 1e-5).rsqrt()
    wanted_x, wanted_weight = gradients(naive_norm, gradient, x, weight)
    dx, dweight = fused.norm_backward(lay(gradient), lay(x), weight, scales)
    close(dx, wanted_x, atol=1e-5 * scales.max().item())
    close(dweight, wanted_weight, atol=1e-5 * rows**0.5)


# ---- SwiGLU --------------------------------------------------------------------------------------------------------


def naive_swiglu(x):
    gate, up = x.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@each_size
@each_layout
def test_swiglu_is_the_naive_one(kernels, dtype, rows, features, lay):
    x = random(rows, 2 * features, dtype=dtype)
    out = fused.swiglu(lay(x))
    assert out.dtype == dtype
    close(out, naive_swiglu(x.double()))


@each_size
@each_layout
def test_swiglu_has_the_gradient_of_autograd(kernels, dtype, rows, features, lay):
    x, gradient = random(rows, 2 * features, dtype=dtype), random(rows, features, dtype=dtype, seed=1)
    (wanted,) = gradients(naive_swiglu, gradient, x)
    found = fused.swiglu_backward(lay(gradient), lay(x))
    assert found.dtype == dtype
    close(found, wanted)
    there = lay(x.clone())
    assert fused.swiglu_backward(lay(gradient), there, overwrite=True) is there
    assert there.equal(found)


@wild_test
@given(st.lists(st.tuples(WILD, WILD, st.sampled_from([-1.0, 0.5, 3.0])), min_size=1, max_size=40))
def test_swiglu_of_wild_values_is_the_naive_one_and_so_is_its_gradient(kernels, dtype, values):
    gate, up, gradient = torch.tensor(values).to(dtype).unbind(dim=1)
    x, gradient = torch.cat([gate, up])[None], gradient[None].contiguous()
    close(fused.swiglu(x), naive_swiglu(x.double()))
    (wanted,) = gradients(naive_swiglu, gradient, x)
    close(fused.swiglu_backward(gradient, x), wanted)


# ---- rotary embedding ----------------------------------------------------------------------------------------------


def naive_rotary(x, angles):
    """Pairs (i, i + d / 2) as complex numbers."""
    left, right = x.double().chunk(2, dim=-1)
    turned = torch.complex(left, right) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([turned.real, turned.imag], dim=-1)


@pytest.mark.parametrize(("rows", "heads", "size"), [(1, 1, 2), (3, 1, 8), (5, 7, 16), (17, 3, 34), (2, 2, 80)])
@pytest.mark.parametrize(
    "lay",
    [lambda t: t, lambda t: torch.cat([t, t + 1], dim=1)[:, : t.size(1)], strided],
    ids=["contiguous", "heads of a wider row", "strided"],
)
def test_rotary_turns_pairs_by_their_angles_and_back(kernels, dtype, rows, heads, size, lay):
    x = random(rows, heads, size, dtype=dtype)
    angles = 100 * torch.rand(rows, size // 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cos, sin = angles.cos().float(), angles.sin().float()
    found = fused.rotary(lay(x), cos, sin)
    assert found.dtype == dtype
    close(found, naive_rotary(x, angles))
    close(fused.rotary(lay(x), cos, sin, sign=-1), naive_rotary(x, -angles))
    close(fused.rotary(found, cos, sin, sign=-1), x)


# ---- attention weights ---------------------------------------------------------------------------------------------


def naive_weights(scores, scale, times):
    """Softmax under an explicit mask: query t of T sees the shared prefix and the first t + 1 of the last T keys."""
    keys = scores.size(-1)
    query = torch.arange(scores.size(1)) % times
    hidden = torch.arange(keys)[None] > keys - times + query[:, None]
    return (scores * scale).masked_fill(hidden, -math.inf).softmax(dim=-1)


@pytest.mark.parametrize(("batch", "heads", "times", "shared"), MASKS)
@each_layout
def test_attention_weights_are_those_under_an_explicit_mask(kernels, dtype, batch, heads, times, shared, lay):
    scores = 5 * random(batch, heads * times, shared + times, dtype=dtype)
    wanted = naive_weights(scores.double(), 0.25, times)
    found, logs = fused.causal_softmax(lay(scores.clone()), 0.25, times)
    assert (found.dtype, logs.dtype) == (dtype, torch.float32)
    close(found, wanted)
    assert (found[wanted == 0] == 0).all()
    # Of the last query, which sees all.
    close(logs[:, times - 1 :: times], (0.25 * scores[:, times - 1 :: times].double()).logsumexp(dim=-1))


@pytest.mark.parametrize(("batch", "rows", "keys"), [(1, 1, 1), (2, 3, 5), (3, 40, 130)])
@each_layout
def test_attention_weights_come_again_from_scores_and_logs(kernels, dtype, batch, rows, keys, lay):
    scores = 5 * random(batch, rows, keys, dtype=dtype)
    wanted = naive_weights(scores.double(), 0.25, 1)
    weights, sums, logs = fused.exps(lay(scores.clone()), 0.25)
    again = fused.softmax_again(lay(scores.clone()), logs, 0.25)
    assert weights.dtype == again.dtype == dtype and weights.amax() == 1
    close(weights, wanted / wanted.amax(dim=-1, keepdim=True))
    close(sums, 1 / wanted.amax(dim=-1))
    close(again, wanted)
    close(logs, (0.25 * scores.double()).logsumexp(dim=-1))


@pytest.mark.parametrize(("batch", "heads", "times", "shared"), MASKS)
@each_layout
def test_attention_weights_have_the_gradient_of_autograd(kernels, dtype, batch, heads, times, shared, lay):
    scores = random(batch, heads * times, shared + times)
    gradient = random(*scores.shape, dtype=dtype, seed=1)
    weights = naive_weights(scores.double(), 0.7, times).to(dtype)
    (wanted,) = gradients(lambda s: naive_weights(s, 0.7, times), gradient, scores)
    along = (gradient.float() * weights.float()).sum(dim=-1)
    found = fused.causal_softmax_backward(lay(gradient), lay(weights), along, 0.7, times)
    assert found.dtype == dtype
    close(found, wanted)
    assert (found[weights == 0] == 0).all()


@wild_test
@given(st.integers(1, 5).flatmap(lambda t: st.tuples(st.just(t), st.lists(WILD, min_size=t, max_size=40))))
def test_attention_weights_of_wild_scores_are_the_naive_ones(kernels, dtype, times_and_values):
    times, values = times_and_values
    scores = torch.tensor(values).to(dtype).expand(1, 2 * times, -1).contiguous()
    wanted = naive_weights(scores.double(), 0.125, times)
    close(fused.causal_softmax(scores, 0.125, times)[0], wanted, atol=1e-3)


# ---- scores over the vocabulary ------------------------------------------------------------------------------------


def naive_scores(scores, targets, temperature):
    distribution = (scores.double() / temperature).log_softmax(dim=-1)
    chances = distribution.exp()
    return distribution.gather(1, targets[:, None]).squeeze(1), torch.special.entr(chances).sum(dim=-1), chances


def check_scores(scores, targets, temperature, lay=lambda t: t):
    wanted = naive_scores(scores, targets, temperature)
    logps, entropies, chances = fused.token_scores(lay(scores.clone()), targets, temperature)
    assert (logps.dtype, entropies.dtype, chances.dtype) == (torch.float32, torch.float32, scores.dtype)
    # A log-prob is a difference of scores, and fp32 holds those to 6e-8 of the largest.
    atol = 1e-5 + 1e-6 * (scores[scores.isfinite()].abs().max() / temperature).item()
    close(logps, wanted[0], atol)
    close(entropies, wanted[1], atol)
    close(chances, wanted[2], atol)


@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 1), (1, 16), (3, 7), (17, 259), (2, 1000)])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@each_layout
def test_token_scores_are_those_of_log_softmax(kernels, dtype, rows, vocabulary, temperature, lay):
    targets = torch.randint(vocabulary, (rows,), generator=torch.Generator().manual_seed(1))
    check_scores(3 * random(rows, vocabulary, dtype=dtype), targets, temperature, lay)


def test_equal_scores_have_the_entropy_of_their_number(kernels, dtype):
    for value in (0.0, 1e4, -1e4):
        logps, entropies, _ = fused.token_scores(torch.full((2, 100), value, dtype=dtype), torch.tensor([0, 99]), 1.0)
        close(entropies, torch.full((2,), math.log(100)), atol=1e-2)
        close(logps, torch.full((2,), -math.log(100)), atol=1e-2)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("parts", [[259], [100, 159], [16, 1, 242]])
@each_layout
def test_gradients_of_scores_part_by_part_are_autograds(kernels, dtype, parts, temperature, lay):
    scores = 3 * random(17, 259, dtype=dtype)
    targets = torch.randint(259, (17,), generator=torch.Generator().manual_seed(1))
    scale = random(17, seed=2)
    wide = scores.double().requires_grad_()
    logps = (wide / temperature).log_softmax(dim=-1)
    logps.gather(1, targets[:, None]).squeeze(1).mul(scale.double() * temperature).sum().backward()
    totals = (scores.double() / temperature).logsumexp(dim=-1).float()
    found, first = [], 0
    for part in scores.split(parts, dim=1):
        found.append(fused.score_gradient(lay(part.clone()), targets - first, totals, scale, temperature))
        first += part.size(1)
    close(torch.cat(found, dim=1), wide.grad)


@pytest.mark.parametrize("allowed", [1, 2, 30])
def test_forbidden_tokens_have_no_share(kernels, dtype, allowed):
    scores = random(3, 40, dtype=dtype)
    scores[:, allowed:] = -math.inf
    check_scores(scores, torch.tensor([0, allowed - 1, 39]), 1.3)  # the last is forbidden itself


@wild_test
@given(
    st.lists(st.one_of(WILD, st.just(-math.inf)), max_size=40).flatmap(lambda s: st.tuples(WILD, st.permutations(s))),
    st.sampled_from([0.5, 1.0, 1.3]),
    st.data(),
)
def test_token_scores_of_wild_scores_are_those_of_log_softmax(kernels, dtype, values, temperature, data):
    values = [values[0], *values[1]]  # at least one token is allowed
    target = data.draw(st.integers(0, len(values) - 1))
    check_scores(torch.tensor([values]).to(dtype), torch.tensor([target]), temperature)


# ---- with and without a compiler -----------------------------------------------------------------------------------


def stored(*shape, dtype, seed=0):
    """Numbers that bf16 holds, in any dtype."""
    return random(*shape, dtype=torch.bfloat16, seed=seed).to(dtype)


PASSES = {
    "add_norm": lambda d: fused.add_norm(random(9, 50), stored(9, 50, dtype=d), random(50, seed=2), 1e-6, d),
    "norm_backward": lambda d: fused.norm_backward(
        stored(9, 50, dtype=d), random(9, 50, seed=1), random(50, seed=2), random(9, seed=3).abs()
    ),
    "swiglu": lambda d: fused.swiglu(stored(9, 50, dtype=d)),
    "swiglu_backward": lambda d: fused.swiglu_backward(stored(9, 25, dtype=d), stored(9, 50, dtype=d, seed=1)),
    "rotary": lambda d: fused.rotary(stored(9, 5, 10, dtype=d), random(9, 5, seed=1), random(9, 5, seed=2)),
    "causal_softmax": lambda d: fused.causal_softmax(stored(2, 12, 11, dtype=d), 0.3, 4),
    "causal_softmax_backward": lambda d: fused.causal_softmax_backward(
        stored(2, 12, 11, dtype=d),
        naive_weights(random(2, 12, 11), 1.0, 4).bfloat16().to(d),
        random(2, 12, seed=3),
        0.3,
        4,
    ),
    "exps": lambda d: fused.exps(stored(2, 12, 11, dtype=d), 0.3),
    "softmax_again": lambda d: fused.softmax_again(stored(2, 12, 11, dtype=d), 3 + random(2, 12, seed=1).abs(), 0.3),
    "token_scores": lambda d: fused.token_scores(stored(9, 50, dtype=d), torch.arange(9), 0.7),
    "score_gradient": lambda d: fused.score_gradient(
        stored(9, 50, dtype=d), torch.arange(-4, 5), 5 + random(9, seed=1), random(9, seed=2), 0.7
    ),
}


def both_ways(monkeypatch, name, compiled_dtype, torch_dtype):
    """Pairs of results: of the compiled kernels, and of torch."""
    if not build._all():
        pytest.skip("there is no C++ compiler here")
    compiled = PASSES[name](compiled_dtype)
    monkeypatch.setattr(build, "_all", dict)
    plain = PASSES[name](torch_dtype)
    return [(compiled, plain)] if isinstance(compiled, torch.Tensor) else list(zip(compiled, plain, strict=True))


@pytest.mark.parametrize("name", PASSES)
def test_torch_computes_the_same_as_the_compiled_kernels(monkeypatch, dtype, name):
    for compiled, plain in both_ways(monkeypatch, name, dtype, dtype):
        assert compiled.dtype == plain.dtype
        close(compiled, plain)


@pytest.mark.parametrize("name", PASSES)
def test_compiled_kernels_compute_in_fp32_and_round_to_bf16_once(monkeypatch, name):
    for compiled, plain in both_ways(monkeypatch, name, torch.bfloat16, torch.float32):
        rtol = 2**-7.9 if compiled.dtype == torch.bfloat16 else 1e-5  # a rounded bf16 is at most 2**-8 off
        torch.testing.assert_close(compiled.float(), plain, rtol=rtol, atol=1e-5)
