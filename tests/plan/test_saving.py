"""What is said of a run's disk is what it takes, and of its checkpoints, how many are made."""

import pytest

from cpu_grpo.config.schema import Checkpoint, Hardware, Memory, Rewards, Train, Trainer, Validation
from cpu_grpo.engine.shape import Shape, of_directory
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.rewarding import Rewarding
from cpu_grpo.experiment.training import train_variant
from cpu_grpo.files import require_space
from cpu_grpo.hardware import setup
from cpu_grpo.plan.memory import scheme_of
from cpu_grpo.plan.saving import checkpoint_count, saving, write_rate
from cpu_grpo.tasks.judge import grader_of
from cpu_grpo.tasks.problems import Problem
from trainers import untracked

SHAPE = Shape(8, 10, 2, 1, 4, 16, 100)


def test_full_training_keeps_weights_and_two_moments_in_fp32():
    config = Train(validation=Validation(every=1, keep="best"))
    found = saving(SHAPE, scheme_of(config), config)
    assert found.checkpoint == 3 * 4 * SHAPE.parameters
    assert found.best == found.model == 4 * SHAPE.parameters
    assert found.with_checkpoints == 3 * found.checkpoint + 3 * found.model


def test_lean_training_keeps_weights_in_bf16_alone():
    config = Train(memory=Memory(scheme="lean"))
    found = saving(SHAPE, scheme_of(config), config)
    assert (found.checkpoint, found.best) == (2 * SHAPE.parameters, 0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
def test_a_checkpoint_takes_about_what_is_said(tiny_directory, tmp_path, scheme):
    trainer = Trainer(max_steps=2, per_device_train_batch_size=4, num_generations=2, max_completion_length=4)
    config = Train(
        name="mine",
        memory=Memory(scheme=scheme),
        rewards=Rewards(digits=1.0),
        trainer=trainer,
        hardware=Hardware("fp32", 1),
        checkpoint=Checkpoint(updates=1),
    )
    problems = [Problem(f"p{i}", f"{i} + 1 =", str(i + 1), 1, "train") for i in range(8)]
    hardware = setup(config.hardware)
    with Rewarding(config.rewards, grader_of(config.task), tmp_path / "faults") as rewards:
        inputs = (hardware, tiny_directory, problems, tmp_path / "mine", untracked(), rewards)
        train_variant(config, *inputs, checkpoints=tmp_path / "kept")
    (checkpoint,) = (tmp_path / "kept").glob("checkpoint-*")
    names = ("optimizer.pt", "model.safetensors", "adapter_model.safetensors")
    taken = sum((checkpoint / name).stat().st_size for name in names if (checkpoint / name).is_file())
    said = saving(of_directory(tiny_directory), scheme_of(config), config).checkpoint
    assert said == pytest.approx(taken, abs=100_000)  # names, states of steps, lean's means
    assert taken > said / 2


@pytest.mark.parametrize(
    ("minutes", "updates", "seconds", "each", "made"),
    [
        (5, 0, 3600, 1, 12),  # every five minutes of an hour
        (5, 0, 299, 1, 0),  # shorter than five minutes
        (5, 0, 3600, 12, 6),  # each takes 12 s, which is 2 % of 10 minutes
        (0, 0, 3600, 1, 0),
        (0, 8, 3600, 1, 12),  # of 100 updates
        (5, 2, 3600, 1, 50),
    ],
)
def test_checkpoints_are_counted(minutes, updates, seconds, each, made):
    config = Train(checkpoint=Checkpoint(minutes, updates))
    assert checkpoint_count(config, 100, seconds, each) == made


def test_the_disks_speed_is_measured_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 1e6 < write_rate() < 1e11
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_told_beforehand(tmp_path):
    with pytest.raises(UserError, match=r"are needed: free some space, or set checkpoint.minutes=0\."):
        require_space(tmp_path, 10**18, ", or set checkpoint.minutes=0")
