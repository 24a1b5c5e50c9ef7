"""Token log-probs and entropies of completions, for TRL's padded batches.

Stock TRL forwards every row whole, so a group's prompt is computed (and differentiated) group-size times, and projects
every position onto the vocabulary. Here a group is one packed sequence of its prompt and its distinct completions.
"""

import torch

from cpu_grpo.engine.learner.forward import Rounded, token_scores
from cpu_grpo.engine.learner.packing import pack


def completion_logps(
    model: Rounded,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    completion_length: int,
    temperature: float,
    recompute: bool = False,
    share: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs and entropies of the completions' tokens at `temperature`.

    Args:
        model: the policy's projections, rounded to the compute dtype.
        input_ids: (B, P + T), prompts padded on the left and completions on the right.
        attention_mask: (B, P + T), 1 for real tokens.
        completion_length: T.
        temperature: the scores are divided by it.
        recompute: gradient checkpointing.
        share: prompts go through the model once for all their completions; else once for each.

    Returns:
        log-probs (B, T), differentiable, and entropies in nats (B, T), detached; both fp32, 0 at padding.
    """
    packed = pack(input_ids, attention_mask, completion_length, share)
    logps, entropies = token_scores(model, packed, temperature, recompute)  # (M,), (M,)
    empty = logps.new_zeros(input_ids.size(0), completion_length)
    places = (packed.rows, packed.columns)
    return (
        empty.index_put(places, logps[packed.scores]),
        empty.index_put(places, entropies[packed.scores]),
    )
