"""What the trainer logs besides TRL's metrics: one figure for a batch that was computed in parts, and the rollout's
difference from the policy."""

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from cpu_grpo.engine.learner.batches import Inputs

Metrics = dict[str, list[float]]  # as TRL collects them between two logs


def counts(metrics: Metrics) -> dict[str, int]:
    """How many entries each metric has."""
    return {key: len(values) for key, values in metrics.items()}


def merge_parts(metrics: Metrics, before: dict[str, int], sizes: list[int]) -> None:
    """Makes one entry of those that a batch's parts have logged since `before`, weighted by their completions.

    Args:
        sizes: completions of each part.
    """
    for key, values in metrics.items():
        new = values[before.get(key, 0) :]
        if len(new) == len(sizes) > 1:
            values[before.get(key, 0) :] = [combined(key, new, sizes)]


def merge_ranks(metrics: Metrics, before: dict[str, int], size: int) -> None:
    """Makes every rank's entries since `before` those of all ranks together, weighted by their completions.

    Args:
        size: this rank's completions.
    """
    own = {key: values[before.get(key, 0) :] for key, values in metrics.items()}
    told: list[tuple[Metrics, int]] = gather_object([({key: new for key, new in own.items() if new}, size)])
    for key in sorted({key for entries, _ in told for key in entries}):
        found = [(entries[key], weight) for entries, weight in told if key in entries]
        sizes = [weight for _, weight in found]
        metrics.setdefault(key, [])[before.get(key, 0) :] = [
            combined(key, values, sizes) for values in zip(*(entries for entries, _ in found), strict=True)
        ]


def combined(key: str, values: Sequence[float], sizes: Sequence[int]) -> float:
    """One figure of several that were taken of so many completions each."""
    combine = max if key.endswith("_max") else min if key.endswith("_min") else None
    return combine(values) if combine else sum(v * s for v, s in zip(values, sizes, strict=True)) / sum(sizes)


def rollout_difference(part: Inputs, logps: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """The policy's log-probs less the rollout's (B, T), 0 where there are none, and how many there are.

    None where the rollout told none.

    Args:
        logps: the learner's, (B, T); the policy's where the batch has no older ones.
    """
    sampled = part.get("sampling_per_token_logps")
    if sampled is None:
        return None
    policy = part.get("old_per_token_logps", logps)  # (B, T); of the policy that the rollout came from
    real = part["completion_mask"].bool() & sampled.isfinite()
    return (policy - sampled).where(real, 0), int(real.sum())


def weigh_advantages(part: Inputs, difference: torch.Tensor, cap: float) -> None:
    """Truncated importance weights: each token's advantage times exp(difference (B, T)), at most `cap`.

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training" (2025).
    """
    # TRL reads the advantages after the log-probs, and takes one for each token as well as for each completion.
    weights = difference.exp().clamp(max=cap)
    part["advantages"] = part["advantages"].reshape(len(weights), -1) * weights
