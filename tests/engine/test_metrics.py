"""What a batch logs that was computed in parts, and how a rollout's log-probs are compared with the policy's."""

import math

import pytest
import torch

from cpu_grpo.engine.metrics import counts, merge_parts, rollout_difference, weigh_advantages


def test_parts_become_one_entry_weighted_by_their_completions():
    metrics = {"kl": [9.0], "clip_max": [], "clip_min": []}
    before = counts(metrics)
    metrics["kl"] += [1.0, 4.0]
    metrics["clip_max"] += [0.1, 0.7]
    metrics["clip_min"] += [0.1, 0.7]
    metrics["new"] = [2.0, 8.0]
    merge_parts(metrics, before, sizes=[2, 1])
    assert metrics == {"kl": [9.0, 2.0], "clip_max": [0.7], "clip_min": [0.1], "new": [4.0]}


def test_what_was_logged_once_stays():
    metrics = {"reward": [1.0]}
    merge_parts(metrics, {}, sizes=[3, 5])
    assert metrics == {"reward": [1.0]}


PART = {
    "completion_mask": torch.tensor([[1, 1], [1, 0]]),
    "sampling_per_token_logps": torch.tensor([[-1.0, -math.inf], [-2.0, -5.0]]),
    "advantages": torch.tensor([1.0, -1.0]),
}


def test_only_real_tokens_with_a_log_prob_are_compared():
    difference, count = rollout_difference(PART, torch.tensor([[-1.5, -1.0], [-1.0, -1.0]]))
    assert difference.tolist() == [[-0.5, 0.0], [1.0, 0.0]] and count == 2


def test_the_policy_that_the_rollout_came_from_is_compared():
    difference, _ = rollout_difference(PART | {"old_per_token_logps": torch.full((2, 2), -1.0)}, torch.zeros(2, 2))
    assert difference.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_a_rollout_without_log_probs_has_nothing_to_compare():
    assert rollout_difference({"completion_mask": PART["completion_mask"]}, torch.zeros(2, 2)) is None


def test_advantages_are_weighted_token_by_token_up_to_the_cap():
    part = dict(PART)
    weigh_advantages(part, torch.tensor([[math.log(1.5), math.log(3.0)], [math.log(0.5), 0.0]]), cap=2.0)
    assert part["advantages"].flatten().tolist() == pytest.approx([1.5, 2.0, -0.5, -1.0])
