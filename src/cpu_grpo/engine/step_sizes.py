"""How much is done at a time, so that it fits into memory: completions of a rollout, tokens of a micro-batch."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from cpu_grpo.engine.learner.batches import Inputs, micro_batches, work_of
from cpu_grpo.engine.learner.size import attended_pairs, micro_batch_bytes
from cpu_grpo.engine.rollout.size import rollout_bytes
from cpu_grpo.engine.shape import Shape
from cpu_grpo.hardware.shortage import Shortage

Part = tuple[Inputs, float]  # a micro-batch, and its weight in the batch's loss


@dataclass
class StepSizes:
    """The sizes of a run's steps. Each halving is for good: memory that was short once will be again."""

    rows: int  # completions decoded together
    tokens: int  # of a micro-batch

    def fit_rows(self, shortage: Shortage, wanted: int, group: int, needed: Callable[[int], int]) -> None:
        """Halves the rows until there is memory for a rollout of `wanted` completions; a group stays together.

        Args:
            needed: bytes that a rollout of so many rows takes.

        Raises:
            MemoryError: there is none for one group.
        """
        rows = max(group, min(self.rows, wanted))
        while rows > group and not shortage.room_for(needed(rows)):
            self.rows = rows = max(group, rows // 2)
        shortage.require(needed(rows))

    def next_part(self, shortage: Shortage, waiting: deque[Part], loss: str, needed: Callable[[Inputs], int]) -> Part:
        """Takes the first micro-batch and its weight; where memory is short for it, a smaller one.

        Args:
            loss: TRL's loss type.
            needed: bytes that a micro-batch takes.

        Raises:
            MemoryError: there is none for a single completion.
        """
        while True:
            part, weight = waiting.popleft()
            if len(part["prompt_ids"]) == 1:
                shortage.require(needed(part))
                return part, weight
            if shortage.room_for(needed(part)):
                return part, weight
            self.tokens = max(1, min(self.tokens, work_of(part)[2]) // 2)
            halves = micro_batches(part, loss, self.tokens, skip=False)
            waiting.extendleft(reversed([(half, weight * share) for half, share in halves]))


def bytes_of_rollout(
    shape: Shape,
    prompt_ids: list[list[int]],
    group: int,
    limit: int,
    compute: int,
    held: int,
    shared: bool,
    rounded: bool,
) -> Callable[[int], int]:
    """What tells how many bytes a rollout of these prompts takes, by the rows decoded together; see `rollout_bytes`."""
    longest = max(map(len, prompt_ids))
    return lambda rows: rollout_bytes(shape, rows, -(-rows // group), longest, limit, compute, held, shared, rounded)


def bytes_of_part(shape: Shape, part: Inputs, compute: int, recompute: bool) -> int:
    """Bytes that a micro-batch takes, about; see `micro_batch_bytes`."""
    completions, length = part["completion_mask"].shape
    prompts, shared, tokens = work_of(part)
    longest, scored = int(part["prompt_mask"].sum(dim=1).max()), int(part["completion_mask"].sum())
    pairs = attended_pairs(longest, completions, length, prompts, shared)
    return micro_batch_bytes(shape, tokens, scored, pairs, shared, compute, recompute)


def bytes_to_come(trained: list[nn.Parameter], within_backward: bool, has_moments: bool) -> int:
    """Bytes of gradients and optimizer state that an update adds to what is there.

    Args:
        trained: the parameters that get gradients.
        within_backward: each is updated as soon as it has its gradient, which is then dropped.
        has_moments: the optimizer's state exists already.
    """
    sizes = [parameter.numel() * parameter.element_size() for parameter in trained]
    working = 2 * max(sizes)  # the largest gradient, before it joins the others
    if within_backward:
        return working
    missing = sum(size for parameter, size in zip(trained, sizes, strict=True) if parameter.grad is None)
    return working + missing + (0 if has_moments else 2 * sum(sizes))
