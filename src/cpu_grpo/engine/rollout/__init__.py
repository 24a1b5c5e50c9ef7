"""The rollout engine: prompts as token ids go in, sampled completions with their log-probs come out.

It knows no text, no rewards and no gradients. `generation` is the loop, `forward` the model's steps, `cache` keys and
values, `sampling` the draws, `schedule` who sits in which row, `weights` the projections laid out, `size` its memory.
"""

from cpu_grpo.engine.rollout.generation import at_once, generate, stream
from cpu_grpo.engine.rollout.groups import in_order, members_of, requests_of
from cpu_grpo.engine.rollout.sampling import NoDistribution, Sampling
from cpu_grpo.engine.rollout.schedule import Completion, Request
from cpu_grpo.engine.rollout.weights import PackedDecoder, packed

__all__ = [
    "Completion",
    "NoDistribution",
    "PackedDecoder",
    "Request",
    "Sampling",
    "at_once",
    "generate",
    "in_order",
    "members_of",
    "packed",
    "requests_of",
    "stream",
]
