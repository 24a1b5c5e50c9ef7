"""Validation on the way: it changes nothing of what is learnt, tells how it goes, keeps the best and knows the end."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from cpu_grpo.config.schema import Checkpoint, Hardware, Memory, Task, Train, Trainer, Validation
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.rewarding import Rewarding
from cpu_grpo.experiment.statistics import wilson
from cpu_grpo.experiment.training import train_variant
from cpu_grpo.experiment.validation import WEIGHTS, Validator
from cpu_grpo.hardware import setup
from cpu_grpo.tasks.judge import grader_of
from cpu_grpo.tasks.problems import Problem
from trainers import untracked

pytestmark = pytest.mark.slow

UPDATES = 5


class Sealed(Problem):
    """A test problem, which training must not read."""

    @property
    def question(self):
        raise AssertionError("a test problem was read")

    @question.setter
    def question(self, text):
        pass


PROBLEMS = [
    Problem(f"p{i}", f"{i} + 1 =", str(i + 1), 1, split) for i, split in enumerate(["train"] * 8 + ["validation"] * 6)
]


@pytest.fixture
def train(tiny_directory, tmp_path):
    """Trains the tiny model; what it gives: the weights, the history, the figures and the points sent to MLflow."""

    def run(name="mine", scheme="full", given=PROBLEMS, updates=UPDATES, checkpoint=0, directory="kept", **settings):
        trainer = Trainer(
            max_steps=updates,
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=4,
            learning_rate=1e-2,
        )
        config = Train(
            name=name,
            task=Task(max_completion_length=4),
            memory=Memory(scheme=scheme),
            trainer=trainer,
            hardware=Hardware("fp32", 1),
            checkpoint=Checkpoint(updates=checkpoint),
            validation=Validation(**settings),
        )
        config.rewards.digits = 1.0
        points = []
        record = untracked(lambda values, step: points.append((step, values)))
        target = tmp_path / "models" / name
        hardware = setup(config.hardware)
        checkpoints = tmp_path / directory
        with Rewarding(config.rewards, grader_of(config.task), tmp_path / "faults") as rewards:
            inputs = (hardware, tiny_directory, given, target, record, rewards)
            trained = train_variant(config, *inputs, checkpoints=checkpoints)
        return SimpleNamespace(
            weights=load_file(target / "model.safetensors"),
            history=trained.history,
            figures=trained.figures,
            points=points,
        )

    return run


def equal(left, right):
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def course(history):
    return {row["step"]: row["validation_accuracy"] for row in history if "validation_accuracy" in row}


@pytest.fixture
def found(monkeypatch):
    """Sets what the validations find, one after another."""

    def of(*accuracies):
        left = iter(accuracies)
        figures = {"validation_low": 0.0, "validation_high": 1.0}
        monkeypatch.setattr(Validator, "_validate", lambda self: {"validation_accuracy": next(left)} | figures)

    return of


@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
def test_a_run_learns_the_same_with_it(train, scheme):
    plain = train("plain", scheme, directory="a")
    watched = train("watched", scheme, directory="b", every=2)
    assert equal(plain.weights, watched.weights)
    assert [row["reward"] for row in plain.history] == [row["reward"] for row in watched.history]


def test_every_so_many_updates_and_at_the_end_its_accuracy_and_interval_are_told(train):
    watched = train(every=2)
    rows = [row for row in watched.history if "validation_accuracy" in row]
    assert [row["step"] for row in rows] == [2, 4, 5]
    for row in rows:
        interval = wilson(round(6 * row["validation_accuracy"]), 6)
        assert (row["validation_low"], row["validation_high"]) == (interval.low, interval.high)
    sent = [(step, values) for step, values in watched.points if "validation_accuracy" in values]
    assert [step for step, _ in sent] == [2, 4, 5]
    assert watched.figures["validation_seconds"] > 0


def test_only_so_many_problems_are_asked(train, monkeypatch):
    asked = []
    right = Validator._validate
    monkeypatch.setattr(Validator, "_validate", lambda self: asked.append(len(self._prompts)) or right(self))
    train(every=5, problems=3)
    assert asked == [3]


def test_problems_of_the_test_split_are_not_read(train):
    sealed = [Sealed.__new__(Sealed)]
    object.__setattr__(sealed[0], "split", "test")
    assert course(train(given=[*PROBLEMS, *sealed], every=5).history)


@pytest.mark.parametrize("scheme", ["full", "lean", "lora"])
def test_the_best_weights_are_what_the_run_yields_where_asked(train, found, scheme):
    expected = train("short", scheme, updates=2, directory="a")
    found(0.3, 0.7, 0.7, 0.1, 0.5)
    best = train("best", scheme, directory="b", every=1, keep="best")
    assert equal(best.weights, expected.weights)
    assert best.figures["best_validation_update"] == best.figures["kept_update"] == 2
    assert best.figures["best_validation"] == 0.7


def test_the_last_weights_are_it_else(train, found):
    plain = train("plain", directory="a")
    found(0.3, 0.7, 0.1, 0.1, 0.1)
    last = train("last", directory="b", every=1)
    assert equal(last.weights, plain.weights)
    assert (last.figures["kept_update"], last.figures["best_validation_update"]) == (5, 2)


def test_damaged_best_weights_are_told_and_not_taken(train, found, monkeypatch, capsys):
    plain = train("plain", directory="a")
    found(0.3, 0.7, 0.1, 0.1, 0.1)
    right = Validator.settle

    def settle(self):
        assert self._file.name == WEIGHTS
        damaged = bytearray(self._file.read_bytes())
        damaged[-1] ^= 1
        self._file.write_bytes(damaged)
        return right(self)

    monkeypatch.setattr(Validator, "settle", settle)
    kept = train("kept", directory="b", every=1, keep="best")
    assert equal(kept.weights, plain.weights) and kept.figures["kept_update"] == 5
    assert "best.safetensors is missing or damaged: the last update's weights are kept" in capsys.readouterr().err


def test_a_run_that_gets_no_better_ends(train, found):
    found(0.3, 0.7, 0.7, 0.6)
    ended = train(every=1, patience=2)
    assert len(ended.history) == 4


@pytest.mark.parametrize("accuracies", [(0.1, 0.5, 0.4, 0.3, 0.6), (0.5, 0.4, 0.3)], ids=["to the end", "patience"])
@pytest.mark.parametrize("moment", [1, 3, 5])
@pytest.mark.parametrize("checkpoint", [1, 2])
def test_a_run_that_was_killed_goes_on_with_it(train, found, monkeypatch, moment, checkpoint, accuracies):
    """Killed in its n-th validation, or, where there are fewer, when its model is saved."""
    by_step = dict(enumerate(accuracies, start=1))
    settings = {"checkpoint": checkpoint, "every": 1, "keep": "best", "patience": 2}

    def validate(self):
        step = self._trainer.state.global_step
        if step == self.killed_at:
            raise KeyboardInterrupt
        return {"validation_accuracy": by_step[step], "validation_low": 0.0, "validation_high": 1.0}

    def settle(self):
        if self.killed_at:
            raise KeyboardInterrupt
        return right(self)

    right = Validator.settle
    monkeypatch.setattr(Validator, "_validate", validate)
    monkeypatch.setattr(Validator, "settle", settle)
    monkeypatch.setattr(Validator, "killed_at", 0, raising=False)
    whole = train("whole", directory="a", **settings)
    monkeypatch.setattr(Validator, "killed_at", moment)
    with pytest.raises(KeyboardInterrupt):
        train("parts", directory="b", **settings)
    monkeypatch.setattr(Validator, "killed_at", 0)
    parts = train("parts", directory="b", **settings)
    assert equal(parts.weights, whole.weights)
    assert course(parts.history) == course(whole.history)
    assert parts.figures["kept_update"] == whole.figures["kept_update"]


def test_it_needs_validation_problems(train):
    without = [replace(problem, split="train") for problem in PROBLEMS]
    with pytest.raises(UserError, match="needs validation problems, and there are none"):
        train(given=without, every=1)
