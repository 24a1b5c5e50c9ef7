"""The least time that the work itself takes: operations over the measured GEMM rate, bytes over the measured bandwidth.

Counted: the matrix products of the layers and the head, with each prompt computed once for its whole group; in
decoding also the weights, read once a step; in the optimizer AdamW's state; in attention the products with what all
prompts begin with. Not counted, so that these stay lower bounds: other attention, norms, sampling, rounding, Python.
"""

from dataclasses import dataclass

from cpu_grpo.engine.shape import Shape

HALF = 2  # bytes of a bf16 weight
ADAMW = 7 * 4  # bytes a parameter: reads weight, gradient and two moments in fp32, writes all but the gradient


@dataclass(frozen=True)
class Work:
    """What one update, or one rollout, has to do."""

    prompts: int
    completions: int  # of each prompt
    prompt_tokens: int
    completion_tokens: int
    shared_tokens: int = 0  # that all prompts begin with

    @property
    def sequences(self) -> int:
        return self.prompts * self.completions

    @property
    def packed_tokens(self) -> int:
        """Tokens that the learner's model must see: each prompt once, and all but the last of each completion."""
        own = self.prompt_tokens - self.shared_tokens
        return self.shared_tokens + self.prompts * (own + self.completions * (self.completion_tokens - 1))

    @property
    def scored_tokens(self) -> int:
        return self.sequences * self.completion_tokens


@dataclass(frozen=True)
class Rates:
    """Of this machine, as measured."""

    flops: float  # multiplications and additions a second, in the fastest precision's matrix products
    bandwidth: float  # bytes a second, reading

    def seconds(self, operations: float, moved: float) -> float:
        """Operations and transfers overlap at best."""
        return max(operations / self.flops, moved / self.bandwidth)


def prefill_operations(shape: Shape, work: Work) -> int:
    """All prompts through the layers, each once, and their last tokens through the head."""
    return 2 * shape.body * work.prompts * work.prompt_tokens + 2 * shape.head * work.prompts


def decode_step_operations(shape: Shape, work: Work) -> int:
    """One token of every sequence."""
    return 2 * (shape.body + shape.head) * work.sequences


def learner_operations(shape: Shape, work: Work, recompute: bool = False) -> int:
    """Forward (2 a weight and token), backward (4), and forward again where the layers are computed twice.

    6 or 8 x (body x packed tokens + head x scored tokens); and as much for each pair of a query and a shared token, in
    each layer, of which scores and sums are products as wide as all heads' queries.
    """
    pairs = (work.packed_tokens - work.shared_tokens) * work.shared_tokens
    weights = shape.body * work.packed_tokens + shape.head * work.scored_tokens
    return (8 if recompute else 6) * (weights + 2 * shape.queries * shape.layers * pairs)


def rollout_seconds(shape: Shape, work: Work, rates: Rates) -> float:
    """Prefill yields the first tokens, each further one takes a step."""
    weights = HALF * (shape.body + shape.head)
    prefill = rates.seconds(prefill_operations(shape, work), weights)
    step = rates.seconds(decode_step_operations(shape, work), weights)
    return prefill + (work.completion_tokens - 1) * step


def learner_seconds(shape: Shape, work: Work, rates: Rates) -> float:
    return learner_operations(shape, work) / rates.flops


def update_seconds(shape: Shape, work: Work, rates: Rates) -> float:
    """Rollout, learner and optimizer."""
    optimizer = ADAMW * shape.parameters / rates.bandwidth
    return rollout_seconds(shape, work, rates) + learner_seconds(shape, work, rates) + optimizer


def rounding_seconds(shape: Shape, rates: Rates) -> float:
    """Every fp32 weight read, and written in half the bytes."""
    return (4 + HALF) * (shape.body + shape.head) / rates.bandwidth
