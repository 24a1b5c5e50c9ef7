"""A study's job: an arm is trained with a seed, stage by stage, and evaluated; what is done is not repeated."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.config.study_schema import StudyJob
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.tracking import git_commit
from cpu_grpo.files import fingerprint, read_sealed
from cpu_grpo.hardware import cpu_name
from cpu_grpo.study.outcomes import (
    Marks,
    Outcome,
    outcome_file,
    read_marks,
    read_outcome,
    read_outcomes,
    write_outcome,
)
from cpu_grpo.study.overfitting import trained_on
from cpu_grpo.study.search import as_keys, next_values
from cpu_grpo.workspace.layout import Layout

PIPELINES = Path(__file__).parents[3] / "pipelines"
KILLED = (-9, 128 + 9)  # by SIGKILL, without a word; the latter from a shell
VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*=")
SUMS = ("updates", "completions", "tokens", "wall_seconds", "train_seconds")  # of a job's stages together
MEANS = ("no_spread_share", "clipped_share", "grad_norm", "cpu_use", "update_seconds")  # over a job's updates


@dataclass(frozen=True)
class Stage:
    """One training of an arm, as the pipeline's command makes it."""

    name: str  # of its model; equal for the arms of a seed that have trained alike so far, so that it is done once
    keys: list[str]


def run_job(config: StudyJob, root: Path) -> Outcome:
    """The job's outcome: found, or made below `root` and kept.

    Raises:
        UserError: a stage failed.
    """
    path = outcome_file(config, config.arm, config.seed)
    found = read_outcome(path)
    values = found.values if found else _values(config)
    work = stages(config, config.arm, values)
    evaluations = {split: _evaluation(config, config.arm, split) for split in config.study.splits}
    job = fingerprint([[stage.keys for stage in work], evaluations])
    if found and found.job == job:
        return found
    begin = time.perf_counter()
    trainings, start = [], "base"
    for stage in work:
        trainings.append(_trained(config, stage, start, root / stage.name))
        start = Layout(root / stage.name).model(stage.name).as_posix()
    evaluated = {
        split: _evaluated(config, keys, start, root / f"{config.arm}-{split}") for split, keys in evaluations.items()
    }
    outcome = Outcome(
        study=config.study.name,
        budget=config.budget.name,
        arm=config.arm,
        seed=config.seed,
        job=job,
        commit=git_commit(),
        hardware=cpu_name(),
        seconds=time.perf_counter() - begin,
        marks={split: marks for split, (marks, _) in evaluated.items()},
        figures=together(trainings),
        runs=[training["mlflow_run_id"] for training in trainings] + [run for _, run in evaluated.values()],
        values=values,
    )
    write_outcome(path, outcome)
    _tidy(config, root)
    return outcome


def _values(config: StudyJob) -> dict[str, float]:
    """What a search's trial is to try, given the trials of lower numbers."""
    if not config.study.search:
        return {}
    before = [outcome for outcome in read_outcomes(config) if outcome.seed < config.seed]
    return next_values(config.study, before, config.seed)


def stages(config: StudyJob, arm: str, values: dict[str, float] | None = None) -> list[Stage]:
    """An arm's training stages, in order, with a trial's values in each."""
    found: list[Stage] = []
    for keys in config.study.arms[arm]:
        own = shlex.split(f"{config.study.common} {keys} {config.budget.training}")
        own += [*as_keys(values or {}), *_everywhere(config, arm)]
        before = found[-1].name if found else "base"
        found.append(Stage(f"{config.study.name}-{config.seed}-{fingerprint([before, own])}", own))
    return found


def _everywhere(config: StudyJob, arm: str) -> list[str]:
    """Keys of every training and evaluation of an arm."""
    given = shlex.split(f"{config.study.task} {config.study.asks.get(arm, '')} {config.also}")
    return [f"seed={config.seed}", f"tracking.experiment=study-{config.study.name}", *given]


def _evaluation(config: StudyJob, arm: str, split: str) -> list[str]:
    """Keys of the evaluation on a split; of training problems, on those that the arm was trained on."""
    limits = [config.budget.problems, trained_on(config.study, arm) if split == "train" else 0]
    limit = min((most for most in limits if most), default=0)
    return [f"evaluation.split={split}", f"evaluation.limit={limit}", *_everywhere(config, arm)]


def _trained(config: StudyJob, stage: Stage, start: str, directory: Path) -> dict[str, Any]:
    """The figures of a training stage, which is run unless its model is there."""
    layout = Layout(directory)
    figures = layout.training / f"{stage.name}.json"
    if not (figures.is_file() and layout.model(stage.name).is_dir()):
        _run(config, "train", [*stage.keys, f"name={stage.name}", f"init_from={start}"], directory)
    return read_sealed(figures)


def _evaluated(config: StudyJob, keys: list[str], model: str, directory: Path) -> tuple[Marks, str]:
    """How the problems came out, and the MLflow run."""
    _run(config, "evaluate", [*keys, f"evaluation.models=[{model}]"], directory)
    rows = Layout(directory).evaluation / f"{Path(model).name}.jsonl"
    return read_marks(rows), read_sealed(rows.with_suffix(".json"))["mlflow_run_id"]


def _run(config: StudyJob, stage: str, keys: list[str], directory: Path) -> None:
    """One of the pipeline's own commands, in a process of its own; what it says is passed on.

    Among the keys, as in a shell, NAME=value is the process's environment.
    """
    variables = dict(key.split("=", 1) for key in keys if VARIABLE.match(key))
    keys = [key for key in keys if not VARIABLE.match(key)]
    command = [sys.executable, str(PIPELINES / f"{stage}.py"), *keys, f"hydra.run.dir={directory.as_posix()}"]
    code = subprocess.run(command, check=False, env=os.environ | variables).returncode
    if code in KILLED:
        raise UserError(
            f"{config.arm} with seed {config.seed} was killed in {stage}, as systems do where memory runs out: free "
            "some and repeat; what was finished is kept."
        )
    if code:
        raise UserError(f"{config.arm} with seed {config.seed} failed in {stage}, as said above: mend it and repeat.")


def _tidy(config: StudyJob, root: Path) -> None:
    """Removes models, half a GB each, that no unfinished arm of the seed goes on from."""
    waiting = [arm for arm in config.study.arms if not outcome_file(config, arm, config.seed).is_file()]
    needed = {stage.name for arm in waiting for stage in stages(config, arm)}
    for directory in root.glob(f"{config.study.name}-{config.seed}-*"):
        if directory.name not in needed:
            shutil.rmtree(directory / "models", ignore_errors=True)


def together(trainings: list[dict[str, Any]]) -> dict[str, float]:
    """Figures of a job from those of its training stages; empty where nothing was trained."""
    if not trainings:
        return {}
    figures = {name: float(sum(own[name] for own in trainings)) for name in SUMS}
    for name in MEANS:
        figures[name] = sum(own[name] * own["updates"] for own in trainings) / figures["updates"]
    figures["peak_rss_bytes"] = float(max(own["peak_rss_bytes"] for own in trainings))
    for name in ("completions", "tokens"):
        figures[f"{name}_per_second"] = figures[name] / figures["train_seconds"]
    return figures
