"""The rollout engine's completions are those of transformers, with kernels compiled and without, and no work is wasted.

Compiled attention takes heads of whole vectors (a multiple of 16) only, so there are models with and without them.
"""

import pytest
import torch

from conftest import with_lora
from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.kernels import build
from cpu_grpo.engine.rollout import Request, Sampling, cache, forward, generation, schedule
from cpu_grpo.engine.rollout.attention import Step
from rollouts import (
    ENDS,
    LIMIT,
    PROMPTS,
    REQUESTS,
    agrees,
    complete,
    decoded_rows,
    differences,
    naive,
    prefilled,
    random_prompts,
    script,
    spy,
    tokens,
)

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
    assert tokens(complete(any_model, requests, rows=3)) == naive(any_model, requests)
    computed = []
    spy(monkeypatch, forward, "_layers", lambda model, ids, attend: computed.append(len(ids)))
    complete(any_model, requests, limit=1, rows=3)  # prefills only
    assert len(computed) > 2 and sum(computed) == root + sum(len(request.prompt) - root for request in requests)


def test_without_sharing_every_completion_has_its_prompt_computed_and_is_the_same(tiny_model, monkeypatch):
    grouped = rooted(9, 12, 30, 16, root=16)
    apart = [Request(request.prompt, 1, copy) for request in grouped for copy in range(request.count)]
    sampling = Sampling(temperature=2.0)
    wanted = [ids for group in tokens(complete(tiny_model, grouped, sampling, rows=3)) for ids in group]
    assert len({tuple(ids) for ids in wanted}) == len(wanted)
    assert [ids for (ids,) in tokens(complete(tiny_model, apart, sampling, rows=3, share=False))] == wanted
    computed = []
    spy(monkeypatch, forward, "_layers", lambda model, ids, attend: computed.append(len(ids)))
    complete(tiny_model, apart, limit=1, rows=3, share=False)
    assert sum(computed) == sum(len(request.prompt) for request in apart)


def test_prompts_that_share_too_much_would_be_noticed(tiny_model, monkeypatch):
    requests = rooted(9, 8, root=16)
    monkeypatch.setattr(generation, "common_prefix", lambda prompts: 17)
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
    monkeypatch.setattr(generation, "CACHE_BYTES", 5 * cache.row_bytes(model, LIMIT, torch.float32))
    rows = decoded_rows(monkeypatch)
    assert agrees(tiny_model, rows=128)
    assert max(rows) <= 5


# ---- no work is wasted ---------------------------------------------------------------------------------------------


def test_a_row_is_decoded_once_for_every_token_but_its_last(tiny_model, monkeypatch):
    rows = decoded_rows(monkeypatch)
    completions = complete(tiny_model, REQUESTS, rows=5)
    assert sum(rows) == sum(len(completion.ids) - 1 for group in completions for completion in group)
    assert max(rows) == 5


def test_prompts_of_other_lengths_join_at_once_where_rows_are_free(tiny_model, monkeypatch):
    """Two of ten, in a lot of their own, are less than a quarter of the rows."""
    rows = decoded_rows(monkeypatch)
    requests = [Request(prompt) for prompt in random_prompts(5, 6, 7, 6, 5, 6, 7, 6, 60, 64)]
    complete(tiny_model, requests, rows=10, limit=4, ends=set())
    assert rows == [10, 10, 10]


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


def test_prompts_that_nobody_continues_are_not_kept(vector_model, kernels, monkeypatch):
    """Of every four prompts one has a long completion, which would keep all that were prefilled with it."""
    requests = [Request(prompt) for prompt in random_prompts(*range(8, 24))]
    script(monkeypatch, requests, [3, 24, 2, 4] * 4)
    steps = []  # how many rows each had, and how many prompts were kept for them

    def note(model, ids, positions, lengths, cache, blocks, level):
        steps.append((len(ids), sum(len(block.lengths) for block in blocks)))

    spy(monkeypatch, generation, "decode", note)
    far = differences(vector_model, requests, complete(vector_model, requests, rows=7))
    assert far.abs().max() < 1e-4
    assert all(kept < 2 * rows for rows, kept in steps)


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
