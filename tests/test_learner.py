"""The learner against the naive computation: each row by itself, without padding, every position projected."""

import pytest
import torch

from cpu_grpo import learner
from cpu_grpo.learner import completion_logps, shares_prompts

PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14]]
# (prompt, completion): groups are shuffled and completions ragged, as TRL hands them over
ROWS = [(0, [20, 21, 22]), (1, [23]), (0, [24, 25, 26, 27]), (2, [28, 29]), (1, [30, 31, 32]), (0, [20, 21, 22])]


def padded():
    """input_ids (B, P + T), attention_mask (B, P + T), and T."""
    width, length = max(map(len, PROMPTS)), max(len(c) for _, c in ROWS)
    ids, mask = [], []
    for prompt, completion in ((PROMPTS[p], c) for p, c in ROWS):
        left, right = width - len(prompt), length - len(completion)
        ids.append([0] * left + prompt + completion + [0] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    return torch.tensor(ids), torch.tensor(mask), length


def naive(model, temperature):
    """Log-probs and entropies of each row's completion, row by row."""
    logps, entropies = [], []
    for prompt, completion in ((PROMPTS[p], c) for p, c in ROWS):
        scores = model(input_ids=torch.tensor([prompt + completion])).logits[0].float() / temperature
        distribution = torch.log_softmax(scores, dim=-1)[len(prompt) - 1 : -1]
        logps.append(distribution[torch.arange(len(completion)), torch.tensor(completion)])
        entropies.append(-(distribution.exp() * distribution).sum(-1))
    return logps, entropies


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("chunk_tokens", [1, 7, 2048])
def test_values_and_gradients_equal_the_naive_ones(tiny_model, monkeypatch, temperature, chunk_tokens):
    monkeypatch.setattr(learner, "CHUNK_TOKENS", chunk_tokens)
    ids, mask, length = padded()
    weights = torch.linspace(-1, 1, steps=len(ROWS) * length).view(len(ROWS), length)

    logps, entropies = completion_logps(tiny_model, ids, mask, length, temperature)
    real = mask[:, -length:].bool()
    found = gradients(tiny_model, (logps * weights)[real].sum())
    wanted_logps, wanted_entropies = naive(tiny_model, temperature)
    wanted = gradients(tiny_model, sum((row * weights[i, : len(row)]).sum() for i, row in enumerate(wanted_logps)))

    for i, row in enumerate(wanted_logps):
        torch.testing.assert_close(logps[i, : len(row)], row, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropies[i, : len(row)], wanted_entropies[i], atol=1e-5, rtol=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


def test_a_wrong_position_would_be_noticed(tiny_model, monkeypatch):
    ids, mask, length = padded()
    right, _ = completion_logps(tiny_model, ids, mask, length, 1.0)
    monkeypatch.setattr(learner, "_positions", lambda mask: 2 * (mask.cumsum(dim=-1) - 1).clamp(min=0))
    wrong, _ = completion_logps(tiny_model, ids, mask, length, 1.0)
    real = mask[:, -length:].bool()
    assert (right - wrong)[real].abs().max() > 1e-3


def test_attended_padding_would_be_noticed(tiny_model):
    ids, mask, length = padded()
    right, _ = completion_logps(tiny_model, ids, mask, length, 1.0)
    wrong, _ = completion_logps(tiny_model, ids, torch.ones_like(mask), length, 1.0)
    real = mask[:, -length:].bool()
    assert (right - wrong)[real].abs().max() > 1e-3


def test_a_distinct_prompt_goes_through_the_model_once(tiny_model):
    ids, mask, length = padded()
    rows = []
    tiny_model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    completion_logps(tiny_model, ids, mask, length, 1.0)
    assert rows == [(len(PROMPTS), max(map(len, PROMPTS))), (len(ROWS), length)]


def test_sliding_windows_are_left_to_the_plain_path(tokenizer, tiny_model):
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
    )
    assert shares_prompts(tiny_model)
    assert not shares_prompts(MistralForCausalLM(config))
