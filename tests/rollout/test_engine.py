"""The rollout engine against transformers' `generate` and plain forward passes, with kernels compiled and without.

Compiled attention takes heads of whole vectors (a multiple of 16) only, so there are models with and without them.
"""

import random
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from conftest import tiny_config, with_lora
from cpu_grpo import rollout
from cpu_grpo.decoder import decoder
from cpu_grpo.hardware import DTYPES
from cpu_grpo.kernels import build, native, products
from cpu_grpo.rollout import Request, Sampling, attention, cache, forward, generate, packed, schedule
from cpu_grpo.rollout.attention import Step

GREEDY = Sampling(temperature=0)
LIMIT = 24
ENDS = set(range(2, 32))  # a completion that does not run in circles meets one soon


def random_prompts(*lengths, seed=0):
    numbers = random.Random(seed)
    return [[numbers.randrange(3, 259) for _ in range(length)] for length in lengths]


PROMPTS = random_prompts(33, 1, 120, 5, 16, 2, 64, 15, 17, 5, 80, 31)
REQUESTS = [Request(prompt, 3 if number % 4 == 2 else 1) for number, prompt in enumerate(PROMPTS)]

# architecture, query heads, key heads, size of a head, other settings
SHAPES = {
    "1 query a key": ("Qwen3", 2, 2, 16, {}),
    "3 queries a key": ("Llama", 6, 2, 16, {"attention_bias": True, "mlp_bias": True}),
    "4 queries a key": ("Qwen3", 4, 1, 32, {"tie_word_embeddings": False}),
    "5 queries a key, linear rope": ("Llama", 5, 1, 16, {"rope": {"rope_type": "linear", "factor": 4.0}}),
    "6 queries a key, yarn rope": ("Qwen3", 6, 1, 16, {"rope": {"rope_type": "yarn", "factor": 4.0}}),
    "7 queries a key": ("Qwen2", 14, 2, 16, {"hidden_size": 14 * 16}),  # as Qwen2's heads share out the hidden size
    "a head of 5 vectors": ("Qwen3", 3, 1, 80, {}),
}


@pytest.fixture(params=SHAPES)
def shaped_model(request, tokenizer):
    """A tiny model whose heads are whole vectors, with biases and norms that matter."""
    import transformers

    name, heads, kv, size, changes = SHAPES[request.param]
    settings = {"num_attention_heads": heads, "num_key_value_heads": kv, "head_dim": size, "hidden_size": 8 * heads}
    settings |= changes
    settings["initializer_range"] = 0.3 * (32 / settings["hidden_size"]) ** 0.5
    if rope := settings.pop("rope", None):
        settings["rope_parameters"] = rope | {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
    settings = tiny_config(tokenizer, **settings).to_dict()
    settings.pop("model_type"), settings.pop("architectures", None)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**settings)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or "bias" in key:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture
def vector_model(tokenizer):
    """A tiny Llama that compiled attention takes."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(tokenizer, head_dim=16)).eval()


def complete(model, requests, sampling=GREEDY, precision="fp32", **options):
    options = {"limit": LIMIT, "ends": ENDS, "seed": 0, "rows": 128} | options
    return generate(packed(decoder(model), precision, options["rows"]), requests, sampling, **options)


def tokens(completions):
    return [[completion.ids for completion in group] for group in completions]


def naive(model, requests, limit=LIMIT, ends=ENDS):
    """transformers' greedy completions, once for every copy."""
    width = max(len(request.prompt) for request in requests)
    padded = [[0] * (width - len(request.prompt)) + request.prompt for request in requests]
    mask = [[0] * (width - len(request.prompt)) + [1] * len(request.prompt) for request in requests]
    out = model.generate(
        input_ids=torch.tensor(padded),
        attention_mask=torch.tensor(mask),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=sorted(ends),
        pad_token_id=0,
    )
    found = []
    for request, row in zip(requests, out[:, width:].tolist(), strict=True):
        end = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        found.append([row[:end]] * request.count)
    return found


def agrees(model, **options):
    """Whether greedy completions are transformers', while rows leave and prompts of other lengths take them."""
    return tokens(complete(model, REQUESTS, **{"rows": 7} | options)) == naive(model, REQUESTS)


@torch.no_grad()
def plain_logps(model, prompt, ids, temperature=1.0):
    """Log-probs of a completion's tokens by one plain forward pass."""
    scores = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].float() / temperature
    return scores.log_softmax(dim=-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)


def differences(model, requests, completions, temperature=1.0):
    """How far each token's log-prob is from the plain forward pass's."""
    return torch.cat(
        [
            torch.tensor(completion.logps) - plain_logps(model, request.prompt, completion.ids, temperature)
            for request, group in zip(requests, completions, strict=True)
            for completion in group
        ]
    )


def spy(monkeypatch, owner, name, note):
    """Hands every call's arguments to `note` on their way."""
    right = getattr(owner, name)

    def wrapped(*arguments, **named):
        note(*arguments, **named)
        return right(*arguments, **named)

    monkeypatch.setattr(owner, name, wrapped)


def decoded_rows(monkeypatch):
    """A list that gets the number of rows of every decoding step."""
    rows = []
    spy(monkeypatch, rollout, "decode", lambda model, ids, *_: rows.append(len(ids)))
    return rows


def prefilled(monkeypatch):
    """A list that gets the prompts of every prefill."""
    prompts = []
    spy(monkeypatch, rollout, "prefill", lambda model, some: prompts.append(some))
    return prompts


def script(monkeypatch, requests, lengths):
    """Lets every completion be given tokens, as many as `lengths` says for each request, the last one the end token 2.

    Returns the tokens. Log-probs stay those of the model.
    """
    numbers = random.Random(0)
    scripts = [[numbers.randrange(32, 259) for _ in range(length - 1)] + [2] for length in lengths]
    of_prompt = {tuple(request.prompt): number for number, request in enumerate(requests)}

    def script_tokens(scores, draws, sampling):
        ids = draws.long()
        return ids, scores.float().log_softmax(dim=-1).gather(1, ids[:, None]).squeeze(1)

    def script_draws(numbers, limit):
        return torch.tensor([scripts[n] + [2] * (limit - len(scripts[n])) for n in numbers], dtype=torch.float64)

    monkeypatch.setattr(rollout, "stream_seed", lambda seed, prompt, copy: of_prompt[tuple(prompt)])
    monkeypatch.setattr(rollout, "uniforms", script_draws)
    monkeypatch.setattr(rollout, "sample", script_tokens)
    return scripts


# ---- greedy completions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 128])
def test_greedy_completions_are_those_of_transformers(any_model, kernels, rows):
    assert agrees(any_model, rows=rows)


def test_greedy_completions_are_those_of_transformers_for_heads_of_every_shape(shaped_model, kernels):
    assert agrees(shaped_model)


def test_greedy_completions_with_lora_are_those_of_the_adapted_model(any_model, kernels):
    plain = naive(any_model, REQUESTS)
    adapted = with_lora(any_model)
    assert agrees(adapted)
    assert naive(adapted, REQUESTS) != plain


def test_the_comparison_meets_end_tokens_the_limit_and_both_ways_of_attention(vector_model, monkeypatch):
    wanted = naive(vector_model, REQUESTS)
    assert len({group[0][-1] for group in wanted} & ENDS) > 2
    assert len({len(group[0]) for group in wanted}) > 3
    assert any(len(group[0]) == LIMIT and group[0][-1] not in ENDS for group in wanted)
    calls = []
    spy(monkeypatch, Step, "_compiled", lambda *_: calls.append("compiled"))
    spy(monkeypatch, forward, "_layers_at_once", lambda *_: calls.append("compiled"))
    spy(monkeypatch, Step, "_composed", lambda *_: calls.append("torch"))
    assert agrees(vector_model)
    assert set(calls) == {"compiled" if build._all() else "torch"}
    calls.clear()
    monkeypatch.setattr(build, "_all", dict)
    assert agrees(vector_model)
    assert set(calls) == {"torch"}


def rooted(*lengths, root):
    """Requests whose prompts begin alike."""
    start, *rests = random_prompts(root, *lengths)
    return [Request(start + rest, 1 + number % 3) for number, rest in enumerate(rests)]


@pytest.mark.parametrize("root", [1, 16, 40])
def test_what_prompts_begin_with_goes_through_the_model_once(any_model, kernels, monkeypatch, root):
    requests = rooted(9, 12, 30, 16, root=root)
    computed = []
    spy(monkeypatch, forward, "_layers", lambda model, ids, attend: computed.append(len(ids)))
    assert tokens(complete(any_model, requests, rows=128)) == naive(any_model, requests)
    first_lot = [len(requests[i].prompt) for i in schedule.admissions(requests)[0]]
    assert len(first_lot) > 1 and computed[0] == sum(first_lot) - root * (len(first_lot) - 1)


def test_prompts_that_share_too_much_would_be_noticed(tiny_model, monkeypatch):
    requests = rooted(9, 8, root=16)
    monkeypatch.setattr(forward, "common_prefix", lambda prompts: 17)
    assert tokens(complete(tiny_model, requests, rows=128)) != naive(tiny_model, requests)


def test_prompts_prefilled_in_small_lots_get_the_same_completions(any_model, kernels, monkeypatch):
    monkeypatch.setattr(schedule, "PREFILL_TOKENS", 40)
    lots = prefilled(monkeypatch)
    assert agrees(any_model, rows=128)
    assert len(lots) > 6


def test_long_completions_of_long_prompts_are_those_of_transformers(vector_model, kernels):
    requests = [Request(prompt, 2) for prompt in random_prompts(1, 130, 67)]
    completions = tokens(complete(vector_model, requests, limit=100, ends={2}))
    assert completions == naive(vector_model, requests, limit=100, ends={2})
    assert any(len(ids) == 100 for group in completions for ids in group)


def test_a_limit_of_one_token_is_kept(tiny_model, kernels):
    completions = tokens(complete(tiny_model, REQUESTS, limit=1, rows=3))
    assert completions == naive(tiny_model, REQUESTS, limit=1)
    assert all(len(ids) == 1 for group in completions for ids in group)


def test_a_group_larger_than_the_rows_is_completed(tiny_model, kernels):
    requests = [Request(PROMPTS[0], 5), Request(PROMPTS[1], 1), Request(PROMPTS[3], 4)]
    assert tokens(complete(tiny_model, requests, rows=2)) == naive(tiny_model, requests)


def test_no_requests_give_no_completions(tiny_model):
    assert complete(tiny_model, []) == []


def test_rows_are_limited_by_the_memory_for_their_keys(tiny_model, monkeypatch):
    model = decoder(tiny_model)
    monkeypatch.setattr(rollout, "CACHE_BYTES", 5 * cache.row_bytes(model, LIMIT, torch.float32))
    rows = decoded_rows(monkeypatch)
    assert agrees(tiny_model, rows=128)
    assert max(rows) <= 5


# ---- log-probs and sampling ----------------------------------------------------------------------------------------


def check_logps(model):
    far = differences(model, REQUESTS, complete(model, REQUESTS, Sampling(temperature=1.3), rows=7), 1.3)
    assert far.abs().max() < 1e-4


def test_log_probs_are_those_of_a_plain_forward_pass(any_model, kernels):
    check_logps(any_model)


def test_log_probs_are_those_of_a_plain_forward_pass_for_heads_of_every_shape(shaped_model, kernels):
    check_logps(shaped_model)


def test_log_probs_of_greedy_and_filtered_tokens_are_before_the_filter(tiny_model):
    far = differences(tiny_model, REQUESTS, complete(tiny_model, REQUESTS))
    assert far.abs().max() < 1e-4
    filtered = complete(tiny_model, REQUESTS, Sampling(temperature=0.7, top_k=3, top_p=0.9))
    far = differences(tiny_model, REQUESTS, filtered, 0.7)
    assert far.abs().max() < 1e-4


def test_a_seed_gives_the_same_completions_in_any_order_and_company(any_model, kernels):
    requests = [Request(prompt, 1 + number % 3) for number, prompt in enumerate(PROMPTS)]
    wanted = tokens(complete(any_model, requests, Sampling(), seed=5))
    for rows in (3, 20):
        order = random.Random(rows).sample(range(len(requests)), len(requests))
        found = tokens(complete(any_model, [requests[i] for i in order], Sampling(), seed=5, rows=rows))
        assert found == [wanted[i] for i in order]
    alone = [complete(any_model, [request], Sampling(), seed=5)[0] for request in requests]
    assert tokens(alone) == wanted


def test_another_seed_gives_other_completions_and_so_does_another_copy(tiny_model):
    requests = [Request(prompt, 4) for prompt in PROMPTS]
    first, second = (tokens(complete(tiny_model, requests, Sampling(), seed=seed)) for seed in (5, 6))
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(len(set(map(tuple, group))) > 1 for group in first)


def check_bf16(model):
    """Rounding to bf16 is 0.16% off on average (rms). Some 25 of these in a row make 0.8% of scores that spread by 2:
    0.016, and more where attention or a norm magnifies it. Measured: 0.012 to 0.031.
    """
    completions = complete(model, REQUESTS, Sampling(), precision="bf16", rows=7)
    far = differences(model, REQUESTS, completions).abs()
    assert 0 < far.mean() < 0.06


def test_bf16_rounds_log_probs_a_little(any_model, kernels):
    check_bf16(any_model)


def test_bf16_rounds_log_probs_a_little_for_heads_of_every_shape(shaped_model, kernels):
    check_bf16(shaped_model)


@pytest.mark.parametrize("rows", [1, 7, 128])
def test_all_layers_at_once_give_what_they_give_one_by_one(shaped_model, narrow_precision, monkeypatch, rows):
    monkeypatch.setattr(products, "_narrow_pays", lambda *_: True)
    model = packed(decoder(shaped_model), narrow_precision, rows)
    kernels = native(DTYPES[narrow_precision])
    calls, right = [], kernels.decode_layers
    monkeypatch.setattr(kernels, "decode_layers", lambda *arguments: calls.append(1) or right(*arguments))

    def completed(model):
        return generate(model, REQUESTS, Sampling(), LIMIT, ENDS, seed=0, rows=rows)

    at_once = completed(model)
    assert calls
    calls.clear()
    assert completed(replace(model, addresses=None)) == at_once
    assert not calls


def test_a_model_held_in_bf16_is_computed_in_fp32_where_that_is_asked_for(any_model, kernels):
    rounded = any_model.bfloat16()
    completions = complete(rounded, REQUESTS, Sampling(), rows=7)
    far = differences(rounded.float(), REQUESTS, completions)
    assert far.abs().max() < 1e-4


def test_a_model_held_in_bf16_is_rounded_no_more_than_one_in_fp32(any_model, kernels):
    rounded = any_model.bfloat16()
    completions = complete(rounded, REQUESTS, Sampling(), precision="bf16", rows=7)
    far = differences(rounded.float(), REQUESTS, completions).abs()
    assert 0 < far.mean() < 0.06


COPIES = 10_000


def one_token_each(model, sampling):
    """How often each token is the first of a completion, and its exact probability before any filter."""
    prompt = PROMPTS[3]
    (group,) = complete(model, [Request(prompt, COPIES)], sampling, limit=1)
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([prompt])).logits[0, -1].double() / sampling.temperature
    return torch.bincount(torch.tensor([c.ids[0] for c in group]), minlength=len(scores)), scores.softmax(dim=0)


def p_value(observed, chances):
    """Pearson's chi-square test; tokens that hardly occur are taken together."""
    expected = chances * observed.sum()
    common = expected >= 10
    assert observed[chances == 0].sum() == 0
    cells = [torch.cat([x[common], x[~common].sum()[None]]).double() for x in (observed, expected)]
    if cells[1][-1] < 10:
        cells = [torch.cat([x[:-2], x[-2:].sum()[None]]) for x in cells]
    return chisquare(cells[0].numpy(), cells[1].numpy()).pvalue


def test_sampled_tokens_occur_as_often_as_the_softmax_says(tiny_model):
    assert p_value(*one_token_each(tiny_model, Sampling(temperature=1.3))) > 1e-3


def test_sampled_tokens_occur_as_often_as_the_softmax_over_the_best_says(tiny_model):
    observed, chances = one_token_each(tiny_model, Sampling(top_k=10))
    best = torch.where(chances >= chances.topk(10).values[-1], chances, 0)
    assert p_value(observed, best / best.sum()) > 1e-3


def test_second_tokens_occur_as_often_as_the_softmax_says(tiny_model, kernels):
    prompt = PROMPTS[4]
    (group,) = complete(tiny_model, [Request(prompt, COPIES)], Sampling(top_k=2), limit=2, ends=set())
    first = torch.tensor([completion.ids[0] for completion in group]).mode().values.item()
    second = torch.tensor([completion.ids[1] for completion in group if completion.ids[0] == first])
    with torch.no_grad():
        chances = tiny_model(input_ids=torch.tensor([[*prompt, first]])).logits[0, -1].double().softmax(dim=0)
    best = torch.where(chances >= chances.topk(2).values[-1], chances, 0)
    assert len(second) > COPIES / 4
    assert p_value(torch.bincount(second, minlength=len(best)), best / best.sum()) > 1e-3


# ---- no work is wasted ---------------------------------------------------------------------------------------------


def test_a_row_is_decoded_once_for_every_token_but_its_last(tiny_model, monkeypatch):
    rows = decoded_rows(monkeypatch)
    completions = complete(tiny_model, REQUESTS, rows=5)
    assert sum(rows) == sum(len(completion.ids) - 1 for group in completions for completion in group)
    assert max(rows) == 5


def test_full_batches_are_decoded_where_all_completions_are_of_one_length(tiny_model, monkeypatch):
    rows = decoded_rows(monkeypatch)
    complete(tiny_model, [Request(prompt) for prompt in random_prompts(8, 9, 10, 11, 12)], rows=2, limit=4, ends=set())
    assert rows == [2, 2, 2, 2, 2, 2, 1, 1, 1]


def test_a_free_row_is_taken_at_once_in_a_small_batch(tiny_model, monkeypatch):
    requests = [Request(prompt) for prompt in random_prompts(8, 9, 10, 11, 12)]
    scripts = script(monkeypatch, requests, [8, 4, 14, 2, 6])
    rows = decoded_rows(monkeypatch)
    assert tokens(complete(tiny_model, requests, rows=4)) == [[ids] for ids in scripts]
    # The fourth leaves after the first step, the fifth prompt joins after the second. With 4, 8 (and 6), and 14 tokens
    # the others leave.
    assert rows == [4, 3, 4, 3, 3, 3, 3, 1, 1, 1, 1, 1, 1]


def test_a_large_batch_waits_until_a_quarter_of_its_rows_is_free(tiny_model, monkeypatch):
    requests = [Request(prompt) for prompt in random_prompts(*range(8, 16), 16)]
    script(monkeypatch, requests, [2, 9, 9, 9, 9, 9, 9, 5, 3])
    rows, lots = decoded_rows(monkeypatch), prefilled(monkeypatch)
    complete(tiny_model, requests, rows=8)
    # 1 of 8 rows is free after the first step and 2 after the fourth; the newcomer stays for 2 steps.
    assert rows == [8, 7, 7, 7, 6, 7, 7, 6]
    assert [len(lot) for lot in lots] == [8, 1]


def test_a_prompt_is_prefilled_once_for_its_group(tiny_model, monkeypatch):
    lots = prefilled(monkeypatch)
    complete(tiny_model, [Request(prompt, 4) for prompt in PROMPTS], rows=9)
    assert sorted(prompt for lot in lots for prompt in lot) == sorted(PROMPTS)


def test_finished_completions_are_counted_as_they_finish(tiny_model, monkeypatch):
    requests = [Request(prompt) for prompt in random_prompts(8, 9, 10, 11, 12)]
    script(monkeypatch, requests, [8, 4, 14, 2, 6])
    counts = []
    complete(tiny_model, requests, rows=4, finished=counts.append)
    assert counts == [1, 1, 2, 1]
    counts.clear()
    complete(tiny_model, requests, rows=4, limit=1, finished=counts.append)
    assert counts == [4, 1]


# ---- rows that move, and faults that must be noticed ---------------------------------------------------------------


def test_a_row_that_moves_twice_in_a_step_keeps_its_tokens(vector_model, kernels, monkeypatch):
    requests = [Request(prompt) for prompt in random_prompts(8, 9, 10, 11, 12)]
    script(monkeypatch, requests, [8, 4, 14, 2, 6])
    # The first and the fifth, now in rows 0 and 1, leave together; the third moves from row 2 to 1 and on to 0.
    far = differences(vector_model, requests, complete(vector_model, requests, rows=4))
    assert far.abs().max() < 1e-4


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_position_would_be_noticed(vector_model, kernels, monkeypatch, shift):
    assert agrees(vector_model)
    right = rollout.decode
    monkeypatch.setattr(
        rollout, "decode", lambda model, ids, positions, *rest: right(model, ids, positions + shift, *rest)
    )
    assert not agrees(vector_model)


def change_step(monkeypatch, change):
    """Lets `change` tamper with every decoding step before its first layer."""
    right = Step.__post_init__

    def changed(self):
        right(self)
        change(self)

    monkeypatch.setattr(Step, "__post_init__", changed)


def test_attention_to_the_column_ahead_would_be_noticed(tiny_model, monkeypatch):
    def see_one_ahead(step):
        step.hidden.view(len(step.lengths), -1)[torch.arange(len(step.lengths)), step.lengths + 1] = 0

    assert agrees(tiny_model)
    change_step(monkeypatch, see_one_ahead)
    assert not agrees(tiny_model)


def test_attention_that_hides_nothing_would_be_noticed(tiny_model, monkeypatch):
    change_step(monkeypatch, lambda step: step.hidden.zero_())
    assert not agrees(tiny_model)


def test_attention_past_a_prompts_end_would_be_noticed(tiny_model, monkeypatch):
    right = cache.PromptBlock.of

    def of(*arguments):
        block = right(*arguments)
        block.hidden.zero_()
        return block

    monkeypatch.setattr(cache.PromptBlock, "of", staticmethod(of))
    assert not agrees(tiny_model)


@pytest.mark.parametrize("shift", [-1, 1])
def test_lengths_that_are_off_by_one_would_be_noticed(vector_model, kernels, monkeypatch, shift):
    def shorten_or_lengthen(step):
        step.lengths = (step.lengths + shift).clamp(min=0)

    change_step(monkeypatch, shorten_or_lengthen)
    assert not agrees(vector_model)


def test_prompts_that_lack_a_token_would_be_noticed(vector_model, monkeypatch):
    if not build._all():
        pytest.skip("there is no C++ compiler here")

    def shorten(step):
        step.prompt_lengths -= 1

    change_step(monkeypatch, shorten)
    assert not agrees(vector_model)


def test_weights_packed_before_an_update_would_be_noticed(tiny_model):
    stale = packed(decoder(tiny_model), "fp32", 3)
    with torch.no_grad():
        for parameter in tiny_model.model.layers.parameters():
            parameter.mul_(1.1)
    found = generate(stale, REQUESTS, GREEDY, LIMIT, ENDS, seed=0, rows=3)
    assert tokens(found) != naive(tiny_model, REQUESTS)
    assert agrees(tiny_model)


def test_rows_that_move_without_their_keys_would_be_noticed(vector_model, kernels, monkeypatch):
    monkeypatch.setattr(cache.CompletionCache, "move", lambda *_: None)
    assert not agrees(vector_model)


def test_another_groups_prompt_would_be_noticed(vector_model, kernels, monkeypatch):
    right = attention.PromptBlock.seat

    def next_one(self, rows_of):
        right(self, rows_of[1:] + rows_of[:1])

    monkeypatch.setattr(cache.PromptBlock, "seat", next_one)
    assert not agrees(vector_model)


def test_a_biased_sampler_would_be_noticed(tiny_model, monkeypatch):
    assert p_value(*one_token_each(tiny_model, Sampling())) > 1e-3
    right = rollout.sample
    monkeypatch.setattr(rollout, "sample", lambda scores, draws, sampling: right(scores, draws.square(), sampling))
    assert p_value(*one_token_each(tiny_model, Sampling())) < 1e-6
