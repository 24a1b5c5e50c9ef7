"""Fewer completions for the learner than the rollout made: it costs several times as much a token.

Xu et al., "Not All Rollouts are Useful: Down-Sampling Rollouts in LLM Reinforcement Learning" (2025), keep those whose
rewards vary most, and compute advantages anew. Here those that are kept are a fair draw of each side of the group's
mean, and weighed by how many they stand for: the gradient's expectation stays that of all of them.

Where few are right, these tell more than the wrong ones. As a policy's mean score is zero, the mean score of the wrong
ones is that of the right ones times -p / (1 - p), p being the share of these: at p = 1/4 a right one says nine times as
much about the gradient, whose direction is the same from the right ones alone. So does RAFT learn (Dong et al. 2023;
Xiong et al., "A Minimalist Approach to LLM Reasoning: from Rejection Sampling to Reinforce", 2025).
"""

import torch


def better(advantages: torch.Tensor) -> torch.Tensor:
    """Advantages (B,), 0 for completions that are worse than their group's mean."""
    return advantages.clamp(min=0)


def fair_share(advantages: torch.Tensor, group: int, keep: int) -> torch.Tensor:
    """Advantages (B,) of whole groups, one after the other: 0 for all but `keep` of each group, more for these.

    As many better than the mean as worse are kept, or what there is of them. Of either side the first: completions of
    a group come in no order.
    """
    groups = advantages.view(-1, group)  # (P, G)
    found = torch.zeros_like(groups)
    better, worse = groups > 0, groups < 0
    more, less = better.sum(1), worse.sum(1)  # (P,)
    of_better = torch.minimum(more, torch.maximum(torch.full_like(more, keep // 2), keep - less))
    for side, count, kept in ((better, more, of_better), (worse, less, torch.minimum(less, keep - of_better))):
        chosen = side & (side.cumsum(1) <= kept[:, None])  # (P, G)
        found += groups.where(chosen, 0) * (count / kept.clamp(min=1))[:, None]
    return found.view(-1)
