"""How much memory a rollout takes, counted from what its code holds."""

from cpu_grpo.engine.kernels.products import FEW, INT8_BYTES
from cpu_grpo.engine.rollout.cache import CACHE_BYTES
from cpu_grpo.engine.rollout.schedule import PREFILL_TOKENS
from cpu_grpo.engine.shape import WIDE, Shape


def rollout_bytes(
    shape: Shape,
    rows: int,
    prompts: int,
    prompt_tokens: int,
    limit: int,
    compute: int,
    held: int,
    shared: bool,
    rounded: bool = False,
) -> int:
    """Weights laid out, keys and values, and the larger of a prefill and a decoding step.

    Args:
        rows: completions decoded together.
        prompts: that they continue.
        prompt_tokens: of the longest prompt.
        limit: tokens a completion may have.
        compute: bytes of a number that products are computed in.
        held: bytes of a weight as the model holds it.
        shared: the weights are read where they lie in any case.
        rounded: the layers' weights are laid out in 8 bits in any case.
    """
    where_they_lie = shared or (rows <= FEW and compute == held == 2)  # as weights.packed has it
    copy = 0 if where_they_lie else min(compute, held)
    body = INT8_BYTES if rounded else copy
    token = 2 * shape.layers * shape.keys * compute  # its keys and values
    cache = min(CACHE_BYTES, rows * limit * token)
    blocks = 2 * prompts * prompt_tokens * token  # as they are computed, and as they are stored
    together = min(prompts * prompt_tokens, PREFILL_TOKENS)
    prefill = together * (2 * WIDE * shape.hidden + compute * (3 * shape.queries + 3 * shape.inner))
    scores = 3 * WIDE * rows * shape.vocabulary
    return round(body * shape.body) + copy * shape.head + cache + blocks + max(prefill, scores)
