"""A run that dies of little memory leaves what it learnt, whole enough to go on from."""

import math
from collections import Counter
from pathlib import Path

import pytest

from cpu_grpo.config.schema import Hardware, Memory, Rewards, Train, Trainer
from cpu_grpo.engine.trainer import CPUGRPOTrainer
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.recipe import chosen_problems
from cpu_grpo.experiment.rewarding import Rewarding
from cpu_grpo.experiment.training import train_variant, unfinished
from cpu_grpo.hardware import setup
from cpu_grpo.models.loading import load_model
from cpu_grpo.tasks.judge import grader_of
from cpu_grpo.tasks.problems import Problem
from trainers import untracked

pytestmark = pytest.mark.slow

RUN = untracked()


@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
def test_what_was_learnt_when_memory_ran_out_can_be_gone_on_from(tiny_directory, tmp_path, monkeypatch, scheme):
    rollouts = []

    def fit_rows(self, prompt_ids, group, rounded):
        rollouts.append(prompt_ids)
        if len(rollouts) == 2:
            raise MemoryError("no room")

    monkeypatch.setattr(CPUGRPOTrainer, "_fit_rows", fit_rows)
    trainer = Trainer(max_steps=3, per_device_train_batch_size=4, num_generations=2, max_completion_length=4)
    config = Train(name="mine", memory=Memory(scheme=scheme), trainer=trainer, hardware=Hardware("fp32", 1))
    problems = [Problem(f"p{i}", f"{i} + 1 =", str(i + 1), 1, "train") for i in range(8)]
    target = tmp_path / "models" / "mine"
    with (
        pytest.raises(UserError, match=r"Memory ran out in update 2 \(no room\).*init_from=.*mine-unfinished"),
        Rewarding(config.rewards, grader_of(config.task), tmp_path / "faults.jsonl") as rewards,
    ):
        train_variant(config, setup(config.hardware), tiny_directory, problems, target, RUN, rewards)
    assert not target.exists()
    model, _ = load_model(unfinished(target))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_few_problems_stand_in_a_pass_as_often_as_asked():
    problems = [Problem(f"p{n}", f"{n} + 1", str(n + 1), 1, "train") for n in range(20)]
    trainer = Trainer(per_device_train_batch_size=64, num_generations=8)
    few = Train(name="few", problems=5, copies=8, trainer=trainer)
    counts = Counter(problem.id for problem in chosen_problems(few, problems))
    assert counts == {f"p{n}": 8 for n in range(5)}
    few.copies = 1
    with pytest.raises(UserError, match=r"5 training problems .*one update takes 8: allow more .*copies"):
        chosen_problems(few, problems)


def test_a_run_whose_numbers_stay_bad_ends_with_advice(tiny_directory, tmp_path, monkeypatch):
    monkeypatch.setattr(CPUGRPOTrainer, "_get_grad_norm", spoilt(CPUGRPOTrainer._get_grad_norm))
    trainer = Trainer(max_steps=5, per_device_train_batch_size=4, num_generations=2, max_completion_length=4)
    config = Train(name="mine", trainer=trainer, hardware=Hardware("fp32", 1))
    problems = [Problem(f"p{i}", f"{i} + 1 =", str(i + 1), 1, "train") for i in range(8)]
    target = tmp_path / "models" / "mine"
    advice = r"Update 3 is skipped.*diverged. Lower trainer.learning_rate \(now 1e-05\).*; no checkpoint was made\.$"
    with (
        Rewarding(config.rewards, grader_of(config.task), tmp_path / "faults") as rewards,
        pytest.raises(UserError, match=advice),
    ):
        train_variant(config, setup(config.hardware), tiny_directory, problems, target, RUN, rewards)
    kept = {path.name for path in target.with_name("mine-bad-batches").iterdir()}
    assert kept == {"update-1.pt", "update-2.pt", "update-3.pt"}
    assert not target.exists()


def spoilt(right):
    """With a weight's gradient NaN."""

    def norm(self, model, grad_norm=None):
        next(model.parameters()).grad.fill_(math.nan)
        return right(self, model, None)

    return norm


FAILS_IN_3 = """
def brevity(completions, trainer_state, **others):
    if trainer_state.global_step == 2:
        raise ValueError("no idea")
    return [-len(text) / 100 for text in completions]
"""


@pytest.mark.parametrize("scheme", ["full", "lean"])
def test_a_run_that_its_rewards_have_ended_goes_on_once_more_is_allowed(tiny_directory, tmp_path, monkeypatch, scheme):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FAILS_IN_3)
    trainer = Trainer(max_steps=4, per_device_train_batch_size=8, num_generations=2, max_completion_length=4)
    problems = [Problem(f"p{i}", f"{i} + 1 =", str(i + 1), 1, "train") for i in range(8)]

    def train(faults, checkpoints):
        settings = {"memory": Memory(scheme=scheme), "trainer": trainer, "hardware": Hardware("fp32", 1)}
        config = Train(name="mine", rewards=Rewards(custom="mine.py:brevity", faults=faults), **settings)
        with Rewarding(config.rewards, grader_of(config.task), Path("faults.jsonl")) as rewards:
            inputs = (setup(config.hardware), tiny_directory, problems, Path(checkpoints) / "mine", RUN, rewards)
            return train_variant(config, *inputs, checkpoints=Path(checkpoints))

    def rewarded(trained):
        return [{key: value for key, value in row.items() if "reward" in key} for row in trained.history]

    whole = rewarded(train(1.0, "whole"))
    with pytest.raises(UserError, match=r"The reward brevity failed on 8 of the latest 24 completions"):
        train(0.1, "parts")
    assert [path.name for path in Path("parts").glob("checkpoint-*")] == ["checkpoint-2"]
    assert rewarded(train(1.0, "parts")) == whole
    assert [row["reward_faults/brevity"] for row in whole] == [0, 0, 8, 0]
    assert len(Path("faults.jsonl").read_text().splitlines()) == 16  # of both parts
