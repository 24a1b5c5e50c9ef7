"""How much memory the learner takes for a micro-batch, counted from what its code keeps."""

from cpu_grpo.engine.learner.attention import LONG
from cpu_grpo.engine.learner.forward import CHUNK
from cpu_grpo.engine.learner.head import BLOCK
from cpu_grpo.engine.shape import WIDE, Shape


def micro_batch_bytes(
    shape: Shape, tokens: int, scored: int, pairs: int, shared: int, compute: int, recompute: bool
) -> int:
    """What exists when backward begins, gradients of weights apart.

    Args:
        tokens: that the model sees.
        scored: of them, those that are projected onto the vocabulary.
        pairs: of a token and one that it attends to.
        shared: tokens, among those, that all prompts begin with.
        compute: bytes of a number that products are computed in.
        recompute: gradient checkpointing.
    """
    layer = _layer(shape, tokens, pairs, compute)
    if not recompute:
        return shape.layers * layer + scored * shape.vocabulary * compute
    widest = compute * 3 * shape.inner * tokens  # one layer's, and the place of every other's
    kept = WIDE * shape.hidden * tokens * shape.layers + widest
    if shared >= LONG:
        kept += shape.layers * (tokens - shared) * (compute * shape.queries + WIDE * shape.heads)
    # Layers and scores take turns: gradients of a layer's widest things and largest weight, or blocks of scores.
    backward = compute * (2 * shape.inner * tokens + 2 * shape.inner * shape.hidden) - widest
    chunk = CHUNK // 2 * shape.vocabulary * compute
    scores = max(chunk, scored * min(BLOCK, shape.vocabulary) * compute)
    return kept + max(layer + backward, scores)


def _layer(shape: Shape, tokens: int, pairs: int, compute: int) -> int:
    """What a layer keeps for its gradient: the stream twice, and norms, in and out of products; queries, keys and
    values before and after rotation; attention weights; gates, ups and their product."""
    attended = 3 * shape.queries + 3 * shape.keys
    streams = 2 * WIDE * shape.hidden + compute * (2 * shape.hidden + attended + 3 * shape.inner)
    return tokens * streams + compute * shape.heads * pairs


def attended_pairs(prompt_tokens: int, completions: int, completion_tokens: int, prompts: int, shared: int) -> int:
    """Pairs of a token and one that it attends to whose weights are kept, in groups of completions of one length.

    Args:
        shared: tokens that all prompts begin with; what others attend to them is not kept.
    """
    own = prompt_tokens - shared
    return shared**2 + prompts * own**2 + completions * completion_tokens * (own + completion_tokens)
