"""Validation on the way: how well the model answers problems that it never learns from, as training goes on."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cpu_grpo.config.schema import Train
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.candidate import candidate
from cpu_grpo.experiment.evaluation import accuracies, answer_all, encoded
from cpu_grpo.experiment.progress import Kept, UpdateLog
from cpu_grpo.experiment.tracking import warn
from cpu_grpo.files import new_file, sha256
from cpu_grpo.tasks.problems import Problem, of_split

WEIGHTS = "best.safetensors"


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        since: validations after it.
        sha256: of the file that keeps its weights; empty where none does.
    """

    step: int = 0
    accuracy: float = -1.0
    since: int = 0
    sha256: str = ""


class Validator(Kept):
    """Validates a run every so many updates, keeps its best weights where asked, and ends it where nothing gets better.

    It draws no random numbers and changes no weights: a run learns the same with it. All of it is part of checkpoints.
    """

    def __init__(
        self,
        config: Train,
        problems: list[Problem],
        tokenizer: Any,
        precision: str,
        log: UpdateLog,
        directory: Path,
    ) -> None:
        """`directory`: where the best weights are kept."""
        self._config = config
        self._settings = config.validation
        self._problems = of_split(problems, "validation")[: self._settings.problems or None]
        if not self._problems:
            raise UserError(f"validation.every={self._settings.every} needs validation problems, and there are none.")
        self._tokenizer = tokenizer
        self._prompts = encoded(config, tokenizer, self._problems)
        self._precision = precision
        self._log = log
        self._file = directory / WEIGHTS
        self.best = Best()
        self.seconds = 0.0  # spent on it

    def watch(self, trainer: Any) -> None:
        """Names the trainer that is validated."""
        self._trainer = trainer
        trainer.after_update = self._after_update

    def kept(self) -> dict[str, Any]:
        return {"best": vars(self.best), "seconds": self.seconds}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step:
            kept = self.held(state)
            self.best, self.seconds = Best(**kept["best"]), kept["seconds"]
            control.should_training_stop = self._enough()

    def settle(self) -> dict[str, Any]:
        """Gives the model the weights that the run is to yield; returns what validation came to."""
        last = self._trainer.state.global_step
        best = self._settings.keep == "best" and self.best.step != last and self._restore()
        return {
            "best_validation": self.best.accuracy,
            "best_validation_update": self.best.step,
            "kept_update": self.best.step if best else last,
            "validation_seconds": self.seconds,
        }

    def _restore(self) -> bool:
        """Puts the best validation's weights into the model; False, with a warning, where their file is damaged."""
        if not self._file.is_file() or sha256(self._file) != self.best.sha256:
            warn(f"{self._file} is missing or damaged: the last update's weights are kept, not the best validation's.")
            return False
        held = load_file(self._file)
        for name, parameter in _trained(self._trainer).items():
            parameter.data.copy_(held[name])
        return True

    def _after_update(self) -> None:
        state, control = self._trainer.state, self._trainer.control
        if state.global_step % self._settings.every == 0 or state.global_step >= state.max_steps:
            start = time.perf_counter()
            figures = self._validate()
            self._judge(figures["validation_accuracy"], state.global_step)
            seconds = time.perf_counter() - start
            self.seconds += seconds
            self._log.leave_out(seconds)
            self._log.add(figures)
            control.should_training_stop |= self._enough()

    def _validate(self) -> dict[str, float]:
        """The accuracy now, with its 95 % interval."""
        trainer, config = self._trainer, self._config
        rows = min(config.evaluation.batch_size, trainer.step_sizes.rows)
        model = trainer.accelerator.unwrap_model(trainer.model)
        with _evaluating(model):
            answering = candidate(model, self._tokenizer, self._precision, rows, shared=trainer.fast.share_weights)
            results = answer_all(config, answering, self._problems, self._prompts)
        figures = accuracies(results, config.task.extraction)
        return {
            "validation_accuracy": figures["accuracy"],
            "validation_low": figures["accuracy_low"],
            "validation_high": figures["accuracy_high"],
        }

    def _judge(self, accuracy: float, step: int) -> None:
        """Whether this validation is the best so far; its weights are kept if that is asked for."""
        if accuracy <= self.best.accuracy:
            self.best.since += 1
            return
        kept = ""
        if self._settings.keep == "best":
            try:
                kept = self._keep()
            except (OSError, SafetensorError) as error:
                warn(f"The weights of update {step}, the best so far, could not be kept ({error}).")
                return
        self.best = Best(step, accuracy, 0, kept)

    def _keep(self) -> str:
        """Writes the weights that are trained; returns the file's hash."""
        with new_file(self._file) as partial:
            save_file({name: p.detach().contiguous() for name, p in _trained(self._trainer).items()}, partial)
        return sha256(self._file)

    def _enough(self) -> bool:
        return 0 < self._settings.patience <= self.best.since


def _trained(trainer: Any) -> dict[str, Any]:
    """The parameters that training changes, by name."""
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad}


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """The model without dropout, for as long as the block lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
