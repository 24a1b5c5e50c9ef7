"""Training with reward functions of the user's, from the command line: logged by name, and stopped by bad ones."""

import csv
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from torture.runs import UPDATES

from stages import command, run

pytestmark = pytest.mark.slow

# The model has a chat template, so completions are lists of one message each, as in TRL.
BREVITY = "def brevity(completions, **others):\n    return [-len(said['content']) / 100 for (said,) in completions]\n"
FAILS = """
# in the third update

def brevity(completions, trainer_state, **others):
    if trainer_state.global_step == 2: raise ValueError("no idea")
    return [0.5] * len(completions)
"""


def history():
    with open("results/train/ultra_fast.csv") as stream:
        return list(csv.DictReader(stream))


def one_error(done):
    """The only line of an error, without a traceback."""
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return line


def store():
    return MlflowClient(f"sqlite:///{Path('mlflow.db').absolute().as_posix()}")  # it keeps what it opened by name


def recorded():
    """The trainings that MLflow knows of: points of their rewards, and their status."""
    client = store()
    experiment = client.get_experiment_by_name("cpu-grpo")
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return [(found.data.metrics, found.info.status, found.info.run_id) for found in runs]


def test_rewards_are_learnt_from_and_logged_by_name(tiny_directory, workspace):
    Path("my_rewards.py").write_text(BREVITY)
    body = "def applies(answer, **others): return [1.0 if len(right) > 1 else None for right in answer]\n"
    Path("more.py").write_text(body)
    keys = {"rewards.custom": "[my_rewards.py:brevity,more.py:applies]", "rewards.custom_weights": "[0.5,2]"}
    done = run(command(tiny_directory, **{"tracking.samples_every": 1}, **keys))
    assert done.returncode == 0, done.stderr
    rows = history()
    assert len(rows) == UPDATES
    for row in rows:
        assert float(row["brevity"]) < 0 and float(row["reward_faults/brevity"]) == 0
    samples = [json.loads(line) for line in Path("results/train/ultra_fast.samples.jsonl").read_text().splitlines()]
    for row in samples:
        parts = row["correct"] + 0.5 * row["closeness"] + 0.5 * row["digits"] + 0.5 * row["brevity"]
        assert row["brevity"] == pytest.approx(-len(row["completion"]) / 100)
        assert row["reward"] == pytest.approx(parts + 2 * (row["applies"] or 0.0))
    without = [sum(row["applies"] is None for row in samples if row["step"] == step) for step in range(1, UPDATES + 1)]
    assert without == [float(row["reward_faults/applies"]) for row in rows]
    assert 0 < sum(without) < len(samples)
    assert [row["applies"] for row in rows] == ["" if count == 8 else "1.0" for count in without]
    ((metrics, status, _),) = recorded()
    assert status == "FINISHED"
    assert metrics["brevity"] == pytest.approx(float(rows[-1]["brevity"]))
    assert metrics["reward_faults/brevity"] == 0


def test_too_many_failures_stop_the_run_and_other_code_begins_anew(tiny_directory, workspace):
    Path("my_rewards.py").write_text(FAILS)
    keys = {"rewards.custom": "my_rewards.py:brevity", "checkpoint.updates": 0}
    line = one_error(run(command(tiny_directory, **keys)))
    assert line.startswith(
        "error: The reward brevity failed on 8 of the latest 24 completions, mostly by exception (ValueError: no idea "
        "in my_rewards.py, line 5), and rewards.faults allows 10% of 64: mend it, or allow more; the completions are "
    )
    assert line.endswith("reward_faults/ultra_fast.jsonl.")
    rows = [json.loads(line) for line in Path("reward_faults/ultra_fast.jsonl").read_text().splitlines()]
    assert [(row["update"], row["kind"]) for row in rows] == [(3, "exception")] * 8
    assert all(isinstance(row["completion"], str) and "+" in row["prompt"] for row in rows)
    assert not Path("models").exists() and not Path("results").exists()
    assert [path.name for path in Path("cache/checkpoints").glob("*/checkpoint-*")] == ["checkpoint-2"]
    ((_, status, run_id),) = recorded()
    assert status == "FAILED"
    assert [path.path for path in store().list_artifacts(run_id)].count("ultra_fast.jsonl")

    Path("my_rewards.py").write_text(BREVITY)
    again = run(command(tiny_directory, **keys))
    assert again.returncode == 0, again.stderr
    said = "The checkpoints of an unfinished run for models/ultra_fast are dropped, as the reward code changed."
    assert said in again.stdout
    assert "goes on from" not in again.stdout
    assert not Path("reward_faults/ultra_fast.jsonl").exists()


def test_code_that_cannot_be_had_is_told_before_a_run_is_recorded(tiny_directory, workspace):
    Path("my_rewards.py").write_text(BREVITY)
    told = one_error(run(command(tiny_directory, **{"rewards.custom": "my_rewards.py:length_of"})))
    assert told == "error: rewards.custom: my_rewards.py has no function length_of; check the name."
    assert not recorded()
    assert not any(Path(name).exists() for name in ("models", "results", "reward_faults"))
