"""The self-check without a trainer: what it looks at, and what it takes for a disagreement."""

import math

import pytest
import torch

from cpu_grpo.engine.rollout import Completion
from cpu_grpo.engine.selfcheck import CHECKED, disagreement, trial_of


def test_the_trial_is_of_the_first_prompts_first_two_completions():
    prompts = [[1, 2, 3], [9], [1, 2, 3], [1, 2, 3]]
    completions = [
        Completion([4, 5], [-1.0, -2.0]),
        Completion([6], [-9.0]),
        Completion([7], [-3.0]),
        Completion([8, 8, 8], [-9.0] * 3),
    ]
    trial = trial_of(prompts, completions)
    assert trial.length == 2
    assert trial.ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 7, 0]]
    assert trial.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]
    assert trial.real.tolist() == [[True, True], [True, False]]
    assert trial.sampled.tolist() == [[-1.0, -2.0], [-3.0, 0.0]]


def test_long_completions_are_looked_at_in_part():
    trial = trial_of([[1]], [Completion([5] * (CHECKED + 20), [-1.0] * (CHECKED + 20))])
    assert trial.length == CHECKED and trial.ids.shape == (1, 1 + CHECKED) and trial.sampled.shape == (1, CHECKED)


TRIAL = trial_of([[1], [1]], [Completion([4, 5], [-1.0, -2.0]), Completion([6], [-3.0])])
RIGHT = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])


@pytest.mark.parametrize("off, precisions, agrees", [
    (0.0, ("fp32", "fp32"), True),
    (0.01, ("fp32", "fp32"), False),
    (0.01, ("bf16", "fp32"), True),  # bf16 on either side explains as much
    (0.01, ("fp32", "bf16"), True),
    (0.5, ("bf16", "bf16"), False),
    (math.nan, ("bf16", "bf16"), False),
])  # fmt: skip
def test_more_than_rounding_explains_is_a_disagreement(off, precisions, agrees):
    found = disagreement(TRIAL, RIGHT + off, RIGHT, *precisions)
    assert (found is None) == agrees
    if found:
        assert found.startswith("the learner's log-probs differ from TRL's by")


def test_the_rollouts_log_probs_are_compared_too():
    found = disagreement(TRIAL, RIGHT + 1, RIGHT + 1, "fp32", "fp32")
    assert found == (
        "the rollout's log-probs differ from TRL's by 1 on average, more than 0.001 (ours in fp32, TRL's in fp32)"
    )


def test_padding_is_not_compared():
    learned = RIGHT.clone()
    learned[1, 1] = 100.0
    assert disagreement(TRIAL, learned, RIGHT, "fp32", "fp32") is None
