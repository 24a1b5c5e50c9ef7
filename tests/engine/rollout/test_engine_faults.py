"""Rows that move, and faults planted in the rollout engine: every one must be noticed."""

import pytest
import torch

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.kernels import build
from cpu_grpo.engine.rollout import Request, attention, cache, generate, generation, packed
from cpu_grpo.engine.rollout.attention import Step
from rollouts import ENDS, GREEDY, LIMIT, REQUESTS, agrees, complete, differences, naive, random_prompts, script, tokens


def test_a_row_that_moves_twice_in_a_step_keeps_its_tokens(vector_model, kernels, monkeypatch):
    requests = [Request(prompt) for prompt in random_prompts(8, 9, 10, 11, 12)]
    script(monkeypatch, requests, [8, 4, 14, 2, 6])
    # The first and the fifth, now in rows 0 and 1, leave together; the third moves from row 2 to 1 and on to 0.
    far = differences(vector_model, requests, complete(vector_model, requests, rows=4))
    assert far.abs().max() < 1e-4


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_position_would_be_noticed(vector_model, kernels, monkeypatch, shift):
    assert agrees(vector_model)
    right = generation.decode
    monkeypatch.setattr(
        generation, "decode", lambda model, ids, positions, *rest: right(model, ids, positions + shift, *rest)
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


def test_keeping_another_prompt_of_a_block_would_be_noticed(vector_model, kernels, monkeypatch):
    right = cache.PromptBlock.only
    monkeypatch.setattr(
        cache.PromptBlock, "only", lambda self, kept: right(self, [(kept[0] + 1) % len(self.lengths), *kept[1:]])
    )
    assert not agrees(vector_model)
