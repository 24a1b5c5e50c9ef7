"""A run's figures for TensorBoard and Weights & Biases, besides MLflow, by transformers' own integrations.

    logs/tensorboard/<run>   TensorBoard's files of a run; one that goes on from a checkpoint goes on there
    logs/wandb               Weights & Biases' folders, which it calls after the time

A run's name here is that of its checkpoints' folder: its variant's, and what stands for all that decides its result.
"""

import os
import shutil
import uuid
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from cpu_grpo.config.schema import Tracking
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.delivery import first_line
from cpu_grpo.experiment.tracking import warn
from cpu_grpo.files import held_object, write_json

LOGS = Path("logs")


def require_packages(tracking: Tracking) -> None:
    """Raises UserError unless all of `tracking.also` are installed."""
    for name in tracking.also:
        if find_spec(name) is None:
            raise UserError(
                f"tracking.also has {name}, which is not installed: get it with `python -m pip install {name}`, or "
                "leave it out."
            )


def reporters(tracking: Tracking, run: str, place: Path, goes_on: bool) -> list["Reporter"]:
    """The callbacks for `tracking.also`.

    Args:
        run: its name.
        place: where the run's checkpoints are.
        goes_on: whether it does so from one of them.

    Raises:
        UserError: a package is missing, or broken.
    """
    require_packages(tracking)
    kinds: dict[str, type[Reporter]] = {"tensorboard": TensorBoard, "wandb": Wandb}
    return [kinds[name](tracking, run, place, goes_on) for name in dict.fromkeys(tracking.also)]


class Reporter(TrainerCallback):
    """One of transformers' callbacks, kept from ending a run: what goes wrong in it is told once, and ends it alone."""

    name = ""

    def __init__(self, tracking: Tracking, run: str, place: Path, goes_on: bool) -> None:
        from transformers.integrations import integration_utils

        self._tracking, self._run, self._place, self._goes_on = tracking, run, place, goes_on
        self._silent = False
        try:
            self._module = import_module(self.module)
            (kind,) = integration_utils.get_reporting_integration_callbacks([self.name])
            self._inner = kind()
        except (ImportError, RuntimeError) as error:
            raise UserError(
                f"tracking.also has {self.name}, which cannot be used ({first_line(error)}): install it anew with "
                f"`python -m pip install --force-reinstall {self.name}`, or leave it out."
            ) from error

    @property
    def module(self) -> str:
        """What must be imported for it."""
        return self.name

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._guarded(self._begin, args, state, control, **named)

    def on_log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._guarded(self._log, args, state, control, **named)

    def on_train_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._guarded(self._end, args, state, control, **named)

    def _begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._inner.on_train_begin(args, state, control, **named)

    def _log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._inner.on_log(args, state, control, **named)

    def _end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._inner.on_train_end(args, state, control, **named)

    def _guarded(self, event: Any, *arguments: Any, **named: Any) -> None:
        if self._silent:
            return
        try:
            event(*arguments, **named)
        except Exception as error:  # of a full disk, of a service: whatever it is, the run matters more
            self._silent = True
            warn(f"{self.name} gets no more figures of this run ({first_line(error)}); the run goes on.")


class TensorBoard(Reporter):
    """Files that TensorBoard reads. A run that goes on tells it to forget what was logged after its checkpoint."""

    name = "tensorboard"

    @property
    def module(self) -> str:
        return "torch.utils.tensorboard"

    def _begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        directory = LOGS / "tensorboard" / self._run
        if not self._goes_on:
            shutil.rmtree(directory, ignore_errors=True)  # of a run with the same name, whose points are these again
        purge = state.global_step + 1 if self._goes_on else None
        self._inner.tb_writer = self._module.SummaryWriter(str(directory), purge_step=purge)
        if not self._goes_on:
            super()._begin(args, state, control, **named)  # writes the settings


class Wandb(Reporter):
    """A run of Weights & Biases, offline unless its own environment variables say otherwise."""

    name = "wandb"

    def _begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        os.environ.setdefault("WANDB_MODE", "offline")
        kept = held_object(self._kept) if self._goes_on else {}
        self._id, self._last = kept.get("id") or uuid.uuid4().hex[:8], kept.get("step", 0)
        (LOGS / "wandb").mkdir(parents=True, exist_ok=True)
        self._module.init(
            project=os.getenv("WANDB_PROJECT") or self._tracking.experiment,
            id=os.getenv("WANDB_RUN_ID") or self._id,
            name=os.getenv("WANDB_NAME") or self._run,
            resume=None if os.environ["WANDB_MODE"] == "offline" else "allow",
            dir=LOGS,  # in which it makes its folder
        )
        super()._begin(args, state, control, **named)

    def _log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        if state.global_step <= self._last and "reward" in named["logs"]:
            return  # an update's, from before the process ended, which is made again from the checkpoint
        super()._log(args, state, control, **named)
        write_json(self._kept, {"id": self._id, "step": state.global_step})

    def _end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        super()._end(args, state, control, **named)
        self._module.finish()

    @property
    def _kept(self) -> Path:
        """What a run that goes on must know of it."""
        return self._place / "wandb.json"
