"""A history row has the means and faults of the user's own rewards, and samples what each completion got of them."""

import math
from types import SimpleNamespace

import pytest

from cpu_grpo.experiment.progress import UpdateLog, update_row

LOGS = {"reward": 0.5, "rewards/correct/mean": 0.25, "rewards/correct/std": 0.1, "completions/mean_length": 4.0}


def test_rows_without_functions_of_the_users_are_as_ever():
    assert list(update_row(LOGS, 1, 8, 2.0)) == [
        *("step", "reward", "completion_length", "correct"),
        *("completions", "seconds", "completions_per_second", "tokens_per_second"),
    ]


def test_a_row_has_own_rewards_by_name_and_their_faults():
    logs = LOGS | {"rewards/brevity/mean": -0.5, "rewards/brevity/std": 0.1, "reward_faults/brevity": 3.0}
    row = update_row(logs, 1, 8, 2.0)
    assert (row["brevity"], row["reward_faults/brevity"], row["correct"]) == (-0.5, 3.0, 0.25)
    assert not any("std" in key for key in row)


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_row_leaves_out_the_mean_of_what_never_applied(nothing):
    row = update_row(LOGS | {"rewards/brevity/mean": nothing, "reward_faults/brevity": 8.0}, 1, 8, 2.0)
    assert "brevity" not in row and row["reward_faults/brevity"] == 8.0


def test_samples_sum_what_applies(tmp_path):
    log = UpdateLog(SimpleNamespace(last_step=0), SimpleNamespace(), 1, tmp_path)
    rewards = {"correct": [1.0, 0.0], "brevity": [math.nan, -0.5]}
    kept = {"prompt": ["p", "p"], "completion": ["a", "b"], "rewards": rewards, "advantages": [1.0, -1.0]}
    weights = SimpleNamespace(tolist=lambda: [1.0, 2.0])
    log.watch(SimpleNamespace(_logs=kept, reward_func_names=["correct", "brevity"], reward_weights=weights))
    first, second = log._sampled(3)
    assert (first["brevity"], first["reward"]) == (None, 1.0)
    assert (second["brevity"], second["reward"]) == (-0.5, -1.0)
