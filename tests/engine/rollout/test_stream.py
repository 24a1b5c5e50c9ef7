"""Tokens of a stream are those of `generate`, each there before the next is computed."""

import pytest
import torch

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.rollout import Request, Sampling, generate, packed, stream
from rollouts import ENDS, GREEDY, LIMIT, PROMPTS, decoded_rows


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, top_k=20)])
def test_a_stream_is_what_generate_returns(tiny_model, kernels, sampling):
    model = packed(decoder(tiny_model), "fp32", 1)
    lengths = set()
    for prompt in PROMPTS[:5]:
        ((whole,),) = generate(model, [Request(prompt)], sampling, LIMIT, ENDS, 3)
        assert list(stream(model, prompt, sampling, LIMIT, ENDS, 3)) == whole.ids
        lengths.add(len(whole.ids))
    assert len(lengths) > 1  # some end by a token, some by the limit


def test_a_token_is_there_before_later_ones_are_computed(tiny_model, monkeypatch):
    steps = decoded_rows(monkeypatch)
    tokens = stream(packed(decoder(tiny_model), "fp32", 1), PROMPTS[0], GREEDY, LIMIT, set(), 0)
    for number in range(1, 6):
        next(tokens)
        assert len(steps) <= number


def test_streams_that_are_read_by_turns_do_not_disturb_each_other(tiny_model):
    model = packed(decoder(tiny_model), "fp32", 1)
    alone = [list(stream(model, prompt, GREEDY, LIMIT, set(), 0)) for prompt in PROMPTS[:2]]
    together = zip(*(stream(model, prompt, GREEDY, LIMIT, set(), 0) for prompt in PROMPTS[:2]), strict=True)
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_reading_a_stream_leaves_gradients_on_outside_of_it(tiny_model):
    tokens = stream(packed(decoder(tiny_model), "fp32", 1), PROMPTS[0], GREEDY, LIMIT, set(), 0)
    next(tokens)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_stream_ends_at_its_limit(tiny_model, limit):
    model = packed(decoder(tiny_model), "fp32", 1)
    assert len(list(stream(model, PROMPTS[0], GREEDY, limit, set(), 0))) == limit
    with pytest.raises(ValueError, match="limit is 0"):
        next(stream(model, PROMPTS[0], GREEDY, 0, set(), 0))
