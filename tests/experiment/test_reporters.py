"""Figures for TensorBoard and Weights & Biases: each update once, also of a run that went on; no run dies of them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cpu_grpo.config.checks import check
from cpu_grpo.config.compose import compose_run
from cpu_grpo.config.schema import Checkpoint, Hardware, Rewards, Tracking, Train, Trainer
from cpu_grpo.errors import UserError
from cpu_grpo.experiment import reporters
from cpu_grpo.experiment.rewarding import Rewarding
from cpu_grpo.experiment.training import train_variant
from cpu_grpo.hardware import setup
from cpu_grpo.tasks.judge import grader_of
from cpu_grpo.tasks.problems import Problem
from trainers import untracked

UPDATES = 4
BRIEF = "def brief(completions, trainer_state, **_):\n    {}\n    return [-len(text) / 100 for text in completions]\n"
FAILS_IN_4 = "if trainer_state.global_step == 3:\n        raise ValueError('no idea')"


def train(directory, also, code="", checkpoints="checkpoints"):
    """A tiny run whose reward function may fail in the last update, after a checkpoint of the second."""
    Path("mine.py").write_text(BRIEF.format(code or "pass"))
    trainer = Trainer(
        max_steps=UPDATES, per_device_train_batch_size=8, num_generations=2, max_completion_length=4, learning_rate=1e-3
    )
    config = Train(
        name="mine",
        trainer=trainer,
        rewards=Rewards(custom="mine.py:brief", faults=0.1),
        hardware=Hardware("fp32", 1),
        tracking=Tracking(also=also),
        checkpoint=Checkpoint(minutes=0, updates=2),
    )
    problems = [Problem(f"p{i}", f"{i} + 1 =", str(i + 1), 1, "train") for i in range(8)]
    with Rewarding(config.rewards, grader_of(config.task), Path("faults.jsonl")) as rewards:
        inputs = (setup(config.hardware), directory, problems, Path("models") / "mine", untracked(), rewards)
        return train_variant(config, *inputs, checkpoints=Path(checkpoints))


def points(run="checkpoints"):
    """Step and reward of TensorBoard's points, as it shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(Path("logs") / "tensorboard" / run)).Reload()
    return [(point.step, pytest.approx(point.value)) for point in shown.Scalars("train/reward")]


def rewards(trained):
    return [(row["step"], row["reward"]) for row in trained.history]


@pytest.mark.slow
def test_tensorboard_shows_each_update_once_of_a_run_that_went_on_or_began_anew(tiny_directory, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="reward brief failed"):
        train(tiny_directory, ["tensorboard"], FAILS_IN_4)
    (Path("checkpoints") / "checkpoint-3").rename("later")  # as if the process had been killed before it was made
    assert [step for step, _ in points()] == [1, 2, 3]
    trained = train(tiny_directory, ["tensorboard"])
    assert points() == rewards(trained) and len(points()) == UPDATES
    assert len(list((Path("logs") / "tensorboard" / "checkpoints").iterdir())) == 2
    for checkpoint in Path("checkpoints").glob("checkpoint-*"):
        checkpoint.rename(tmp_path / f"old-{checkpoint.name}")
    again = train(tiny_directory, ["tensorboard"])
    assert points() == rewards(again)


@pytest.mark.slow
def test_what_goes_wrong_in_a_reporter_is_told_once_and_ends_no_run(tiny_directory, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "logs").write_text("a file where a folder is to be")
    assert len(train(tiny_directory, ["tensorboard"]).history) == UPDATES
    told = capsys.readouterr().err
    assert told.count("warning: tensorboard gets no more figures of this run") == 1


class Offline:
    """Of wandb what a run takes, noting what it is given."""

    def __init__(self):
        self.begun, self.finished, self.logged = [], 0, []

    def init(self, **named):
        self.begun.append(named)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    """A stand-in, for this package and for transformers' callback."""
    from transformers.integrations import integration_utils

    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    package = Offline()

    class Callback:
        def on_train_begin(self, args, state, control, **named):
            pass

        def on_log(self, args, state, control, logs, **named):
            package.logged.append((state.global_step, logs))

        def on_train_end(self, args, state, control, **named):
            pass

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Callback)
    monkeypatch.setattr(reporters, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def log(steps, goes_on, kept=Path(".")):
    """What a training does with the reporter."""
    (reporter,) = reporters.reporters(Tracking(also=["wandb"]), "mine-abc", kept, goes_on)
    state = SimpleNamespace(global_step=0, max_steps=4)
    reporter.on_train_begin(None, state, None)
    for state.global_step in steps:
        reporter.on_log(None, state, None, logs={"reward": 1.0})
    return reporter


def test_wandb_is_offline_and_goes_on_with_the_same_run_and_no_point_twice(wandb, monkeypatch):
    log([1, 2, 3], goes_on=False)  # and the process is killed
    reporter = log([3, 4], goes_on=True)
    reporter.on_log(None, SimpleNamespace(global_step=4, max_steps=4), None, logs={"train_runtime": 3.0})
    reporter.on_train_end(None, SimpleNamespace(global_step=4, max_steps=4), None)
    assert [step for step, logs in wandb.logged if "reward" in logs] == [1, 2, 3, 4]
    assert wandb.logged[-1] == (4, {"train_runtime": 3.0})
    first, second = wandb.begun
    assert first["id"] == second["id"] and first["project"] == "cpu-grpo" and first["name"] == "mine-abc"
    assert reporters.os.environ["WANDB_MODE"] == "offline" and first["resume"] is None
    assert wandb.finished == 1
    log([1], goes_on=False)
    assert wandb.begun[-1]["id"] != first["id"]  # another run
    monkeypatch.delenv("WANDB_MODE")


def test_wandbs_own_variables_say_otherwise(wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "ours")
    log([1], goes_on=False)
    assert reporters.os.environ["WANDB_MODE"] == "online"
    assert wandb.begun[0]["project"] == "ours" and wandb.begun[0]["resume"] == "allow"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_named_with_the_command_that_brings_it(monkeypatch, name):
    monkeypatch.setattr(reporters, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"tracking.also has {name}, .*`python -m pip install {name}`"):
        reporters.require_packages(Tracking(also=[name]))
    reporters.require_packages(Tracking())


def test_a_package_that_is_broken_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(reporters, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"tracking\.also has wandb, which cannot be used"):
        reporters.reporters(Tracking(also=["wandb"]), "mine", tmp_path, False)


def test_only_known_places_can_be_asked_for():
    assert compose_run(["tracking.also=[tensorboard,wandb]"]).tracking.also == ["tensorboard", "wandb"]
    with pytest.raises(UserError, match=r"tracking\.also=comet is not a choice: use tensorboard, wandb"):
        compose_run(["tracking.also=[comet]"])
    check(compose_run([]))


def test_what_is_kept_of_wandb_is_whole(wandb):
    log([1, 2], goes_on=False)
    assert json.loads(Path("wandb.json").read_text())["step"] == 2
