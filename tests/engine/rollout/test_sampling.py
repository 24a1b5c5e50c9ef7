"""Drawn tokens against exact probabilities, transformers' filters and the naive inverse of the distribution."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cpu_grpo.engine.kernels import build
from cpu_grpo.engine.rollout import sampling as module
from cpu_grpo.engine.rollout.sampling import Sampling, sample, stream_seed, uniforms

OPTIONS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(temperature=1.5),
    Sampling(top_k=7),
    Sampling(top_p=0.8),
    Sampling(min_p=0.1),
    Sampling(temperature=1.3, top_k=15, top_p=0.9, min_p=0.05),
]
VOCABULARIES = [20, 512, 700]  # part of a block, whole blocks, and blocks with a tail
BELOW_1 = [math.nextafter(1, 0), 1 - 2**-24]  # fp64 and fp32


# Compiled kernels draw where nothing is filtered.
pytestmark = pytest.mark.usefixtures("kernels")


def each_option(function):
    return pytest.mark.parametrize("sampling", OPTIONS, ids=repr)(function)


def random_scores(n, vocabulary, spread=2.0, seed=0, dtype=torch.float32):
    return (spread * torch.randn(n, vocabulary, generator=torch.Generator().manual_seed(seed))).to(dtype)


def filtered(scores, sampling):
    """What transformers' `generate` would hand to softmax, in the scores' dtype."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(None, scores)


def kept_weights(scores, sampling):
    scores = scores.float() / sampling.temperature
    return module._keep(scores.softmax(-1), scores, sampling)


def draw_many(scores, sampling, draws=100_000, change=lambda numbers: numbers):
    """How often each token of one row's scores (V,) is drawn."""
    numbers = change(uniforms(range(draws // 1000), 1000).flatten())
    tokens, _ = sample(scores.expand(draws, -1).contiguous(), numbers, sampling)
    return tokens.bincount(minlength=len(scores))


def fit(counts, scores, sampling):
    """The chi-square test's p-value for counts (V,) against the exact probabilities; removed tokens must not occur."""
    expected = counts.sum() * filtered(scores.double().unsqueeze(0), sampling).softmax(-1).squeeze(0)
    assert counts[expected == 0].sum() == 0
    common = expected >= 10  # the test's approximation needs such a count: all rarer tokens are pooled
    observed, expected = (torch.cat([x[common], x[~common].sum().view(1)]).double() for x in (counts, expected))
    return chisquare(observed[expected > 0], expected[expected > 0]).pvalue


@pytest.mark.slow
@each_option
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_tokens_occur_in_proportion_to_their_probability(vocabulary, sampling):
    scores = random_scores(1, vocabulary)[0]
    assert fit(draw_many(scores, sampling), scores, sampling) > 1e-4


def test_bf16_scores_are_drawn_as_well():
    scores = random_scores(1, 700, dtype=torch.bfloat16)[0]
    assert fit(draw_many(scores, Sampling()), scores, Sampling()) > 1e-4


def test_sums_of_the_wrong_block_would_be_noticed(monkeypatch):
    monkeypatch.setattr(build, "_all", dict)
    right = module._block_sums
    monkeypatch.setattr(module, "_block_sums", lambda weights: right(weights).roll(1, dims=1))
    scores = random_scores(1, 700)[0]
    assert fit(draw_many(scores, Sampling()), scores, Sampling()) < 1e-6


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=7)], ids=repr)
@pytest.mark.parametrize("change", [torch.square, lambda numbers: 0.97 * numbers], ids=["squared", "cut off"])
def test_biased_uniforms_would_be_noticed(sampling, change):
    scores = random_scores(1, 20)[0]
    assert fit(draw_many(scores, sampling, change=change), scores, sampling) < 1e-6


def test_a_wrong_temperature_would_be_noticed():
    scores = random_scores(1, 700)[0]
    assert fit(draw_many(scores, Sampling(temperature=1.03)), scores, Sampling()) < 1e-6


@pytest.mark.parametrize(
    "sampling", [*OPTIONS, Sampling(top_k=1), Sampling(top_k=1000), Sampling(top_p=1e-6), Sampling(min_p=1.0)], ids=repr
)
@pytest.mark.parametrize(("vocabulary", "spread"), [(1, 1.0), (20, 2.0), (700, 2.0), (5000, 0.1), (5000, 10.0)])
def test_the_same_tokens_are_kept_as_in_transformers(vocabulary, spread, sampling):
    scores = random_scores(50, vocabulary, spread)
    reference = filtered(scores, sampling).softmax(-1)
    found = kept_weights(scores, sampling)
    assert torch.equal(found > 0, reference > 0)
    torch.testing.assert_close(found / found.sum(-1, keepdim=True), reference, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("top_k", [0, 40])
@pytest.mark.parametrize("spread", [0.05, 2.0])
def test_of_equal_scores_as_many_are_kept_as_in_transformers(spread, top_k):
    sampling = Sampling(top_k=top_k, top_p=0.7)
    scores = random_scores(50, 5000, spread, dtype=torch.bfloat16).float()
    reference = filtered(scores, sampling).isfinite()
    found = kept_weights(scores, sampling) > 0
    assert (found != reference).any()  # transformers leaves to the sort which of them: here the first
    lowest = scores.new_tensor(-math.inf)
    for one, other in zip(found, reference, strict=True):
        assert one.sum() == other.sum()
    assert torch.equal(scores.where(found, lowest).sort().values, scores.where(reference, lowest).sort().values)
    edge = scores.where(found, math.inf).amin(-1, keepdim=True)
    tied = scores == edge
    assert torch.equal(found & tied, tied & (tied.cumsum(-1) <= (found & tied).sum(-1, keepdim=True)))


@pytest.mark.parametrize("candidates", [1, 2, 100, 512, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_nucleus_does_not_depend_on_how_many_candidates_are_tried_first(monkeypatch, dtype, candidates):
    flat, mixed, peaked = (random_scores(4, 5000, spread, dtype=dtype) for spread in (0.01, 2.5, 8.0))
    scores = torch.cat([flat, mixed, peaked, torch.zeros_like(flat)])
    monkeypatch.setattr(module, "CANDIDATES", 10**6)  # sorts the whole vocabulary
    wanted = kept_weights(scores, Sampling(top_p=0.9))
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    assert torch.equal(kept_weights(scores, Sampling(top_p=0.9)), wanted)
    sizes = (wanted > 0).sum(-1)
    assert sizes.min() < 100 and sizes.max() > 4000  # found at once, and after the widest search


@pytest.mark.parametrize("size", [1, 50, 99, 100, 101])
def test_of_equals_past_the_last_candidate_the_lowest_ids_stay(monkeypatch, size):
    monkeypatch.setattr(module, "CANDIDATES", 100)
    found = kept_weights(torch.zeros(3, 5000), Sampling(top_p=(size - 0.5) / 5000))
    assert torch.equal(found > 0, (torch.arange(5000) < size).expand(3, -1))


@pytest.mark.slow
@each_option
def test_removed_tokens_are_never_drawn(sampling):
    scores = random_scores(300, 700)
    kept = filtered(scores, sampling).isfinite()
    for number in [*torch.linspace(0, 1, 101)[:-1].tolist(), *BELOW_1]:
        tokens, _ = sample(scores, torch.full((300,), number, dtype=torch.float64), sampling)
        assert kept.gather(1, tokens.unsqueeze(1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_greedy_takes_the_first_of_the_best(dtype):
    scores = random_scores(30, 700, dtype=dtype)
    scores[10:20, [300, 301, 699]] = 50.0
    scores[20:] = 0.0
    greedy = Sampling(temperature=0, top_k=3, top_p=0.5)
    tokens, logps = sample(scores, torch.full((30,), 0.99), greedy)
    assert tokens.tolist() == [*scores[:10].argmax(-1).tolist(), *[300] * 10, *[0] * 10]
    wanted = scores.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logps, wanted, atol=1e-5, rtol=0)


@each_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_logps_are_those_of_the_whole_distribution(dtype, sampling):
    scores = random_scores(500, 700, spread=5.0, dtype=dtype)
    tokens, logps = sample(scores, uniforms(range(500), 1)[:, 0], sampling)
    wanted = (scores.float() / sampling.temperature).log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1)
    assert (tokens.dtype, logps.dtype) == (torch.int64, torch.float32)
    torch.testing.assert_close(logps, wanted, atol=1e-5, rtol=0)


def test_the_logp_of_a_weight_that_almost_underflows_is_exact(kernels):
    lowest = -102.0 if kernels == "torch" else -86.0  # exp(-102) is among the last denormal numbers of fp32
    scores = torch.tensor([[-math.inf, lowest + 30, 30.0]])
    tokens, logps = sample(scores, torch.zeros(1), Sampling())
    assert (tokens.item(), logps.item()) == (1, lowest)


@st.composite
def cases(draw):
    """Wild scores (n, V), uniforms (n,) and options."""
    n, vocabulary = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 30, 255, 256, 257, 512, 700]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    spread = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4, 1e30]))
    scores = spread * torch.randn(n, vocabulary, generator=generator)
    forbidden = torch.rand(n, vocabulary, generator=generator) < draw(st.sampled_from([0, 0.1, 0.5, 0.99]))
    forbidden[torch.arange(n), torch.randint(vocabulary, (n,), generator=generator)] = False
    scores = scores.masked_fill(forbidden, -math.inf)
    near = scores.shape[1] // 2
    scores[:, :near] -= draw(st.sampled_from([0.0, 80.0, 103.0]))  # whole blocks that underflow, or almost
    number = st.one_of(st.sampled_from([0.0, 2**-24, 0.5, *BELOW_1]), st.floats(0, 1, exclude_max=True))
    sampling = Sampling(
        temperature=draw(st.sampled_from([1.0, 0.3, 2.0])),
        top_k=draw(st.sampled_from([0, 1, 5, 300])),
        top_p=draw(st.sampled_from([1.0, 1e-3, 0.5, 0.999])),
        min_p=draw(st.sampled_from([0.0, 1e-4, 0.5, 1.0])),
    )
    numbers = torch.tensor(draw(st.lists(number, min_size=n, max_size=n)), dtype=torch.float64)
    return scores.to(draw(st.sampled_from([torch.float32, torch.bfloat16]))), numbers, sampling


@settings(max_examples=300, deadline=None)
@given(cases())
def test_draws_are_the_naive_inverse_of_the_distribution(case):
    scores, numbers, sampling = case
    kept = kept_weights(scores, sampling) > 0
    assert kept.any(-1).all()
    exact = (scores.double() / sampling.temperature).masked_fill(~kept, -math.inf).softmax(-1)
    upto = exact.cumsum(-1)
    naive = torch.searchsorted(upto, numbers.unsqueeze(1), right=True).clamp(max=scores.size(1) - 1)

    tokens, logps = sample(scores, numbers, sampling)
    assert logps.isfinite().all()
    for row, (token, number) in enumerate(zip(tokens.tolist(), numbers.tolist(), strict=True)):
        assert kept[row, token]
        if token != naive[row].item():
            low = upto[row, token] - exact[row, token]
            assert low - 1e-6 < number < upto[row, token] + 1e-6


@pytest.mark.parametrize("number", [0.0, *BELOW_1])
@pytest.mark.parametrize("only", [0, 255, 256, 300, 511, 512, 699])
def test_the_only_possible_token_is_drawn(only, number):
    scores = torch.full((1, 700), -math.inf)
    scores[0, only] = 3.0
    tokens, logps = sample(scores, torch.tensor([number], dtype=torch.float64), Sampling())
    assert (tokens.item(), logps.item()) == (only, 0)


def test_a_number_past_the_sum_takes_the_last_positive_weight():
    weights = torch.tensor([[0.0, 0.5, 0.0, 0.25, 0.0]])
    targets = torch.tensor([[0.0], [0.5], [0.75], [0.8]], dtype=torch.float64)
    indices, rest = module._search(weights.expand(4, -1), targets)
    assert indices.squeeze(1).tolist() == [1, 3, 3, 3]
    assert rest.squeeze(1).tolist() == pytest.approx([0, 0, 0.25, 0.3])


def test_neither_the_batch_nor_its_chunks_change_a_sequence(monkeypatch):
    scores, numbers = random_scores(64, 700, 3.0, dtype=torch.bfloat16), uniforms(range(64), 1)[:, 0]
    sampling = OPTIONS[-1]
    tokens, logps = sample(scores, numbers, sampling)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:40]
    monkeypatch.setattr(module, "CHUNK_SCORES", 3 * 700)
    for found, wanted in zip(sample(scores[order], numbers[order], sampling), (tokens, logps), strict=True):
        assert torch.equal(found, wanted[order])


def test_scores_are_left_as_they_are_and_no_sequence_is_no_error():
    scores = random_scores(5, 700)
    before = scores.clone()
    for sampling in OPTIONS:
        sample(scores, torch.zeros(5), sampling)
        assert torch.equal(scores, before)
        tokens, logps = sample(scores[:0], torch.zeros(0), sampling)
        assert (tokens.shape, logps.shape) == ((0,), (0,))


@pytest.mark.parametrize("temperature", [0, 1.0])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, None])
def test_what_is_no_distribution_is_refused(wrong, temperature):
    scores = random_scores(3, 20)
    scores[1] = -math.inf
    if wrong is not None:
        scores[1, 5] = wrong
    with pytest.raises(ValueError, match="the step at which the model diverged"):
        sample(scores, torch.zeros(3), Sampling(temperature=temperature))


def test_uniforms_depend_on_nothing_but_their_seed():
    drawn = uniforms([3, 1, 2**63 - 1], 50)
    assert drawn.shape == (3, 50)
    assert torch.equal(uniforms(torch.tensor([2**63 - 1, 7, 3]), 50)[[2, 0]], drawn[[0, 2]])
    assert torch.equal(uniforms([1], 20)[0], drawn[1, :20])
    assert not torch.equal(drawn[0], drawn[1])
    state = torch.get_rng_state()
    uniforms([1], 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert uniforms([], 5).shape == (0, 5)


def test_uniforms_are_uniform_along_and_across_sequences():
    drawn = uniforms(range(1000), 200)
    assert drawn.min() >= 0 and drawn.max() < 1
    for numbers in (drawn.flatten(), drawn[:, 0], drawn[0]):
        assert chisquare((numbers * 20).long().bincount(minlength=20)).pvalue > 1e-4


def test_stream_seed_is_stable_and_tells_completions_apart():
    assert stream_seed(0, [1, 2, 3], 0) == 1070771260032432332
    inputs = [(0, [1, 2, 3], 0), (1, [1, 2, 3], 0), (0, [1, 2], 3), (0, [1, 2, 3], 1), (0, [3, 2, 1], 0), (0, [], 0)]
    seeds = [stream_seed(*each) for each in [*inputs, (1, [], 0), (0, [0], 0), (-1, [], 0)]]
    assert len(set(seeds)) == len(seeds)
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)  # all that torch's generator reads
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 is out of bounds: use 0 (greedy) or a number above it."),
        ({"temperature": math.inf}, "temperature=inf is out of bounds: use 0 (greedy) or a number above it."),
        ({"temperature": math.nan}, "temperature=nan is out of bounds: use 0 (greedy) or a number above it."),
        ({"top_k": -1}, "top_k=-1 is no count of tokens: use a whole number from 1, or 0 for off."),
        ({"top_k": 2.5}, "top_k=2.5 is no count of tokens: use a whole number from 1, or 0 for off."),
        ({"top_p": 0.0}, "top_p=0.0 is out of bounds: use a number above 0 and below 1, or 1 for off."),
        ({"top_p": 1.1}, "top_p=1.1 is out of bounds: use a number above 0 and below 1, or 1 for off."),
        ({"min_p": -0.5}, "min_p=-0.5 is out of bounds: use a number above 0 and up to 1, or 0 for off."),
        ({"min_p": 2}, "min_p=2 is out of bounds: use a number above 0 and up to 1, or 0 for off."),
    ],
)
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(ValueError) as caught:
        Sampling(**options)
    assert str(caught.value) == message
