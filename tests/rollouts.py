"""Rollouts of tiny models beside naive ones: what the tests of the rollout engine share."""

import random

import torch

from cpu_grpo.engine.decoder import decoder
from cpu_grpo.engine.rollout import Request, Sampling, generate, generation, packed

GREEDY = Sampling(temperature=0)
LIMIT = 24
ENDS = set(range(2, 32))  # a completion that does not run in circles meets one soon


def random_prompts(*lengths, seed=0):
    numbers = random.Random(seed)
    return [[numbers.randrange(3, 259) for _ in range(length)] for length in lengths]


PROMPTS = random_prompts(33, 1, 120, 5, 16, 2, 64, 15, 17, 5, 80, 31)
REQUESTS = [Request(prompt, 3 if number % 4 == 2 else 1) for number, prompt in enumerate(PROMPTS)]


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
    spy(monkeypatch, generation, "decode", lambda model, ids, *_: rows.append(len(ids)))
    return rows


def prefilled(monkeypatch):
    """A list that gets the prompts of every prefill."""
    prompts = []
    spy(monkeypatch, generation, "prefill", lambda model, root, some: prompts.append(some))
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

    monkeypatch.setattr(generation, "stream_seed", lambda seed, prompt, copy: of_prompt[tuple(prompt)])
    monkeypatch.setattr(generation, "uniforms", script_draws)
    monkeypatch.setattr(generation, "sample", script_tokens)
    return scripts
