"""The learner: token log-probs of completions, each distinct prompt going through the model once.

Stock TRL forwards every row whole, so a group's prompt is computed (and differentiated) group-size times, and projects
every position onto the vocabulary. Here the distinct prompts run first, their keys and values are handed to all of
their completions, and only completion positions are projected.
"""

import torch
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicCache, DynamicLayer

CHUNK_TOKENS = 2048  # completion positions whose full-vocabulary scores exist at the same time in backward


def completion_logps(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    temperature: float,
    autocast: torch.autocast | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the completions' tokens under `model` at `temperature`.

    Args:
        model: a causal language model as transformers makes them.
        input_ids: (B, P + T), prompts padded on the left and completions on the right.
        attention_mask: (B, P + T), 1 for real tokens.
        completion_length: T.
        temperature: the scores are divided by it.
        autocast: a context for the forward pass, or None.

    Returns:
        log-probs (B, T), differentiable, and entropies in nats (B, T), detached; both fp32, meaningless at padding.
    """
    prompts = input_ids.size(1) - completion_length
    completion_ids = input_ids[:, prompts:]  # (B, T)
    with autocast or torch.autocast("cpu", enabled=False):
        hidden = _completion_hidden(model, input_ids, attention_mask, prompts)  # (B, T, H)
        head = model.get_output_embeddings()
        logps, entropies = [], []
        rows = max(1, CHUNK_TOKENS // completion_length)
        for start in range(0, hidden.size(0), rows):
            part = slice(start, start + rows)
            scored = checkpoint(_score, head, hidden[part], completion_ids[part], temperature, use_reentrant=False)
            logps.append(scored[0])
            entropies.append(scored[1])
    return torch.cat(logps), torch.cat(entropies)


def shares_prompts(model: torch.nn.Module) -> bool:
    """Whether a prompt's keys and values can serve all of its completions: plain full attention in every layer."""
    try:
        cache = DynamicCache(config=model.config)
    except Exception:  # a cache class of the model's own
        return False
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def _completion_hidden(
    model: torch.nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompts: int
) -> torch.Tensor:
    """Final hidden states that predict the completions' tokens, (B, T, H)."""
    body = model.get_decoder()
    key = torch.cat([input_ids[:, :prompts], attention_mask[:, :prompts]], dim=1)  # (B, 2P)
    distinct, group = torch.unique(key, dim=0, return_inverse=True)  # (D, 2P), (B,)
    prompt_ids, prompt_mask = distinct[:, :prompts], distinct[:, prompts:]  # (D, P)
    first = body(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=_positions(prompt_mask),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
    )
    cache = first.past_key_values
    cache.batch_select_indices(group)  # keys and values: (D, ...) -> (B, ...)
    rest = body(
        input_ids=input_ids[:, prompts:],
        attention_mask=attention_mask,
        position_ids=_positions(attention_mask)[:, prompts:],
        past_key_values=cache,
        use_cache=True,
    )
    # The prompt's last state predicts the first token; the completion's last state predicts nothing that is scored.
    return torch.cat([first.last_hidden_state[group, -1:], rest.last_hidden_state[:, :-1]], dim=1)  # (B, T, H)


def _positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def _score(
    head: torch.nn.Module, hidden: torch.Tensor, ids: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(b, T, H) states and (b, T) tokens -> log-probs and entropies, (b, T) each."""
    scores = head(hidden).float() / temperature  # (b, T, V)
    log_total = scores.logsumexp(dim=-1)  # (b, T)
    chosen = scores.gather(-1, ids.unsqueeze(-1)).squeeze(-1)  # (b, T)
    with torch.no_grad():
        weights = (scores - log_total.unsqueeze(-1)).exp()
        entropy = log_total - (weights * scores).sum(dim=-1)
    return chosen - log_total, entropy
