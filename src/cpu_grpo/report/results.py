"""The result files of the other stages, as types. A file that is missing is None, never a guess."""

import csv
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cpu_grpo.config.schema import Pipeline
from cpu_grpo.errors import UserError
from cpu_grpo.files import read_jsonl, read_sealed, sha256

Record = TypeVar("Record")


@dataclass(frozen=True)
class Training:
    """results/train/<variant>.json, and the course of its figures over the updates from the CSV beside it."""

    variant: str
    init_from: str | None = None
    updates: int | None = None
    completions: int | None = None
    tokens: int | None = None
    wall_seconds: float | None = None
    load_seconds: float | None = None
    completions_per_second: float | None = None
    tokens_per_second: float | None = None
    peak_rss_bytes: float | None = None
    planned_peak_rss_bytes: float | None = None
    expected_peak_rss_bytes: float | None = None
    update_seconds: float | None = None
    planned_update_seconds: float | None = None
    expected_update_seconds: float | None = None
    memory: str | None = None
    cpu_use: float | None = None
    reward_first: float | None = None
    reward_last: float | None = None
    precision: str | None = None
    threads: int | None = None
    seed: int | None = None
    mlflow_run_id: str | None = None
    course: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """One problem as a model answered it: a row of results/evaluate/<model>.jsonl."""

    id: str
    question: str
    answer: str
    completion: str
    right: bool
    difficulty: int = 1


@dataclass(frozen=True)
class Evaluation:
    """results/evaluate/<model>.json and the rows beside it."""

    model: str
    split: str
    extraction: str
    n: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    strict_accuracy: float
    strict_low: float
    strict_high: float
    flexible_accuracy: float
    flexible_low: float
    flexible_high: float
    model_hash: str | None = None  # of the weights that were evaluated
    task: str | None = None
    samples: int | None = None
    sampled_accuracy: float | None = None
    sampled_low: float | None = None
    sampled_high: float | None = None
    pass_at: dict[int, float] = field(default_factory=dict)  # by number of answers
    wall_seconds: float | None = None
    peak_rss_bytes: float | None = None
    planned_peak_rss_bytes: float | None = None
    answer_seconds: float | None = None
    planned_answer_seconds: float | None = None
    expected_answer_seconds: float | None = None
    mlflow_run_id: str | None = None
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True)
class Results:
    """All that a report is made from."""

    source: dict[str, Any]
    card: dict[str, Any]
    trainings: dict[str, Training]
    evaluations: dict[str, Evaluation]


def read_results(root: Path, config: Pipeline) -> Results:
    """What is there below `root` of the models that `config` compares.

    Raises:
        UserError: a file is damaged or lacks a field.
    """
    trainings = read_trainings(root / "results" / "train")
    evaluations = read_evaluations(root / "results" / "evaluate")
    return Results(
        source=_read_json(root / "models" / "base" / "source.json") or {},
        card=_read_json(root / "data" / "card.json") or {},
        trainings={name: trainings[name] for name in config.variants if name in trainings},
        evaluations={name: evaluations[name] for name in config.evaluation.models if name in evaluations},
    )


def read_trainings(directory: Path) -> dict[str, Training]:
    """By variant. The name comes from inside the file: a file's own name may be shortened."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        figures = _read_json(path) or {}
        _check(figures, path.with_suffix(".csv"))
        training = _record(Training, figures, path, course=_read_course(path.with_suffix(".csv")))
        found[training.variant] = training
    return found


def read_evaluations(directory: Path) -> dict[str, Evaluation]:
    """By model; one without its rows counts as not run, for nothing could be compared."""
    found = {}
    for path in sorted(directory.glob("*.json")):
        rows = path.with_suffix(".jsonl")
        if rows.is_file():
            figures = _read_json(path) or {}
            _check(figures, rows)
            answers = [_record(Answer, row, rows) for row in read_jsonl(rows)]
            pass_at = {int(key[8:]): value for key, value in figures.items() if key.startswith("pass_at_")}
            evaluation = _record(Evaluation, figures, path, answers=answers, pass_at=pass_at)
            found[evaluation.model] = evaluation
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    return read_sealed(path) if path.is_file() else None


def _check(figures: dict[str, Any], *beside: Path) -> None:
    """Raises UserError where a file beside the figures is not the one that was written with them."""
    for path in beside:
        expected = figures.get(f"sha256{path.suffix}")
        if expected and path.is_file() and sha256(path) != expected:
            raise UserError(f"{path} was altered or damaged since it was written: run the stage that writes it again.")


def _read_course(path: Path) -> dict[str, list[float]]:
    """The numeric columns of a CSV; a cell that is no number becomes NaN, which plots leave out."""
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {name: [_number(row[name]) for row in rows] for name in (rows[0] if rows else {}) if name}


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return math.nan


def _record(kind: type[Record], row: dict[str, Any], where: Path, **more: Any) -> Record:
    """`kind` from the keys it knows; other keys are left alone, so that stages may record more."""
    known = {item.name for item in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{key: value for key, value in row.items() if key in known}, **more)
    except TypeError as error:
        raise UserError(f"{where} lacks a field ({error}): run the stage that writes it again.") from error
