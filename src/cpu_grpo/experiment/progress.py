"""What a training run tells while it runs: a progress bar, a history row an update, samples, warnings."""

import json
import math
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from cpu_grpo.experiment.history import History, Samples
from cpu_grpo.experiment.tracking import Run, warn
from cpu_grpo.hardware import ResourceMonitor
from cpu_grpo.tasks.rewards import COMPONENTS, text_of

# TRL's name -> ours (design vocabulary), for what every run logs
RENAMED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "no_spread_share",
    "completions/clipped_ratio": "clipped_share",
    "completions/mean_length": "completion_length",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "entropy": "entropy",
    "learning_rate": "learning_rate",
    "clip_ratio/low_mean": "clip_ratio_low",
    "clip_ratio/high_mean": "clip_ratio_high",
    "clip_ratio/region_mean": "clip_ratio",
    "kl": "kl",
    "rollout/tokens_per_second": "rollout_tokens_per_second",
    "rollout/seconds": "rollout_seconds",
    "rollout/entropy": "rollout_entropy",
    "rollout/logp_difference_mean": "logp_difference_mean",
    "rollout/logp_difference_max": "logp_difference_max",
    "update/skipped": "skipped",
} | {f"rewards/{name}/mean": name for name in COMPONENTS}
FAULTS = "reward_faults/"  # before a function's name: completions of an update that it gave no reward
# What a row of the history or of the samples holds besides the rewards of a run's own functions.
COLUMNS = {"step", "completions", "seconds", "completions_per_second", "tokens_per_second", "rss_bytes", "cpu_use"}
COLUMNS |= {"prompt", "completion", "advantage", *RENAMED.values()}
HOPELESS = 0.9  # a share of clipped completions, or of groups without spread, above which little can be learnt
WINDOW = 3  # updates in a row before the warning
SAMPLES = 16  # completions kept from a sampled update


class Kept(TrainerCallback, ExportableState, ABC):
    """A callback that goes on from a checkpoint: subclasses say what it holds of them, as a JSON-like value."""

    @abstractmethod
    def kept(self) -> dict[str, Any]:
        """What checkpoints hold of it."""

    def state(self) -> dict[str, Any]:
        """The same as transformers takes it."""
        return {"args": {}, "attributes": {"kept": json.dumps(self.kept())}}  # as text: columns keep their order

    def held(self, state: Any) -> dict[str, Any]:
        """What the checkpoint holds of it that a trainer's state is from."""
        return json.loads(state.stateful_callbacks[type(self).__name__]["attributes"]["kept"])


class UpdateLog(Kept):
    """Collects one row an update (`history`) and sample completions (`samples`), and passes them to MLflow.

    All of it, and what the run has used so far, is part of checkpoints, and goes on from there.
    """

    def __init__(
        self, run: Run, monitor: ResourceMonitor, samples_every: int, directory: Path, goes_on_from: Path | None = None
    ) -> None:
        """`directory`: where it is collected; `goes_on_from`: the checkpoint that the run does."""
        self.history = History(directory / "history.jsonl")
        self.samples = Samples(directory / "samples.jsonl")
        self._goes_on_from = goes_on_from
        self._run = run
        self._monitor = monitor
        self._samples_every = samples_every
        self._warned: set[str] = set()
        self.checkpoints = 0
        self.checkpoint_seconds = 0.0  # all of them together; no update's
        self._trained = 0.0  # seconds of training before this process
        self._begin = self._clock = time.perf_counter()

    @property
    def train_seconds(self) -> float:
        """Of training so far, in this process and those whose checkpoints it goes on from."""
        return self._trained + time.perf_counter() - self._begin

    def kept(self) -> dict[str, Any]:
        return {
            "recent": self.history.recent(),
            "warned": sorted(self._warned),
            "used": self._monitor.used(),
            "trained": self.train_seconds,
            "checkpoints": [self.checkpoints, self.checkpoint_seconds],
        }

    def leave_out(self, seconds: float) -> None:
        """What was just spent on something else than training is not counted as such."""
        self._begin += seconds
        self._clock += seconds

    def add(self, figures: dict[str, float]) -> None:
        """Figures of the last update, found after it was logged."""
        self.history.amend(figures)
        if self.history.step > self._run.last_step:
            self._run.metrics(figures, self.history.step)

    def watch(self, trainer: Any) -> None:
        """Names the trainer whose completions are sampled."""
        self._trainer = trainer
        trainer.add_to_checkpoint = self._copy_to

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._goes_on_from:
            kept = self.held(state)
            self.history.go_on(self._goes_on_from, kept["recent"])
            self.samples.go_on(self._goes_on_from)
            self._warned = set(kept["warned"])
            self._monitor.go_on(kept["used"])
            self._trained = kept["trained"]
            self.checkpoints, self.checkpoint_seconds = kept["checkpoints"]
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="update", disable=not sys.stderr.isatty()
        )
        self._begin = self._clock = time.perf_counter()
        self._monitor.cpu_use_since_last()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "reward" not in logs:  # the summary that ends a training
            return
        now = time.perf_counter()
        row = update_row(logs, state.global_step, update_completions(args), now - self._clock)
        row |= {"rss_bytes": self._monitor.rss(), "cpu_use": self._monitor.cpu_use_since_last()}
        self._clock = now
        self.history.append(row)
        del state.log_history[:-1]  # transformers' own, which nothing reads
        if state.global_step > self._run.last_step:  # else it was sent before the process ended
            self._run.metrics({key: value for key, value in row.items() if key != "step"}, state.global_step)
        if (
            state.global_step % self._samples_every in (0, 1 % self._samples_every)
            or state.global_step == state.max_steps
        ):
            self.samples.add(self._sampled(state.global_step))
        self._warn("clipped_share", "of the completions were cut off at the token limit: raise max_completion_length")
        self._warn(
            "no_spread_share",
            "of the groups had no spread of reward: raise temperature or group size, or ease the task",
        )
        self._bar.set_postfix(reward=f"{row['reward']:.2f}", refresh=False)
        self._bar.update()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.checkpoints += 1
        self.checkpoint_seconds += self._trainer.checkpoint_seconds
        self.leave_out(self._trainer.checkpoint_seconds)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()
        self._run.table(self.samples.rows(), "samples.json")

    def _copy_to(self, checkpoint: Path) -> None:
        self.history.copy_to(checkpoint)
        self.samples.copy_to(checkpoint)

    def _sampled(self, step: int) -> list[dict[str, Any]]:
        kept = self._trainer._logs  # the last generation batch, as TRL keeps it for its own tables
        weights = dict(zip(self._trainer.reward_func_names, self._trainer.reward_weights.tolist(), strict=True))
        rows = []
        for index, (asked, completion) in enumerate(zip(kept["prompt"], kept["completion"], strict=True)):
            components = {name: _known(kept["rewards"][name][index]) for name in weights}
            rows.append(
                {
                    "step": step,
                    "prompt": text_of(asked),
                    "completion": text_of(completion),
                    "reward": sum(weights[name] * value for name, value in components.items() if value is not None),
                    **components,
                    "advantage": float(kept["advantages"][index]),
                }
            )
        return rows[-SAMPLES:]

    def _warn(self, key: str, advice: str) -> None:
        last = self.history.last(key, WINDOW)
        if len(last) == WINDOW and min(last) > HOPELESS and key not in self._warned:
            self._warned.add(key)
            warn(f"in {WINDOW} updates running, over {HOPELESS:.0%} {advice}.")


def update_completions(args: Any) -> int:
    """Completions that one update learns from."""
    return args.per_device_train_batch_size * args.gradient_accumulation_steps


def _known(reward: float) -> float | None:
    """None for NaN: what TRL makes of a reward that does not apply."""
    return None if math.isnan(reward) else float(reward)


def update_row(logs: dict[str, Any], step: int, completions: int, seconds: float) -> dict[str, float]:
    """One history row from TRL's logs of an update that took `seconds`."""
    row: dict[str, float] = {"step": step}
    row |= {ours: float(logs[theirs]) for theirs, ours in RENAMED.items() if logs.get(theirs) is not None}
    row |= _own_rewards(logs)
    row["completions"] = completions
    row["seconds"] = seconds
    row["completions_per_second"] = completions / seconds
    row["tokens_per_second"] = completions * row["completion_length"] / seconds
    return row


def _own_rewards(logs: dict[str, Any]) -> dict[str, float]:
    """Means and faults of the user's reward functions; a mean only where the reward applied."""
    found = {}
    for theirs, value in logs.items():
        name = theirs.removeprefix("rewards/").removesuffix("/mean")
        if theirs == f"rewards/{name}/mean" and name not in COMPONENTS:
            if value is not None and not math.isnan(value):
                found[name] = float(value)
        elif theirs.startswith(FAULTS):
            found[theirs] = float(value)
    return found
