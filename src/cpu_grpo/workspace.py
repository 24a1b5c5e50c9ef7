"""Where a stage finds its inputs and puts its outputs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Model, Shared
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, new_directory, write_json
from cpu_grpo.models import load_tokenizer, model_record, prepare_model
from cpu_grpo.tasks.card import data_card
from cpu_grpo.tasks.problems import Problem, write_problems
from cpu_grpo.tasks.prompts import prompt, prompt_ids
from cpu_grpo.tasks.splits import draw

CACHE = Path("cache")  # models and problems made for runs outside the pipeline, by fingerprint of their configuration


@dataclass(frozen=True)
class Layout:
    """The folders below a root: the project's for the pipeline, a job's own directory otherwise."""

    root: Path

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def training(self) -> Path:
        return self.root / "results" / "train"

    @property
    def evaluation(self) -> Path:
        return self.root / "results" / "evaluate"


def base_model(config: Model) -> Path:
    """The base model's directory: the pipeline's if made from this configuration, else the cache's, made at need."""
    wanted = fingerprint(asdict(config))
    pipelines_own = Layout(Path()).model("base")
    if model_record(pipelines_own).get("config") == wanted:
        return pipelines_own
    cached = CACHE / "models" / f"{Path(config.name).name}-{wanted}"
    if not model_record(cached):
        prepare_model(config, cached)
    return cached


def find_model(name: str, config: Model) -> Path:
    """`base`, the name of a trained variant, or a directory.

    Raises:
        UserError: there is no such model yet.
    """
    if name == "base":
        return base_model(config)
    for directory in (Layout(Path()).model(name), Path(name)):
        if (directory / "config.json").is_file():
            return directory
    raise UserError(
        f"The model {name} has not been trained: there is neither models/{name} nor a directory {name}; train it with "
        f"`dvc repro train@{name}`, or start from base."
    )


def prepare_problems(config: Shared, model_directory: Path, target: Path) -> dict[str, Any]:
    """Draws the task's problems into `target` (problems.jsonl and card.json). Returns the card."""
    tokenizer = load_tokenizer(model_directory)
    if not tokenizer.chat_template:
        print(f"notice: {config.model.name} has no chat template, so prompts are plain text (Question: ... Answer:).")
    lengths: dict[str, int] = {}

    def prompt_length(problem: Problem) -> int:
        if problem.id not in lengths:
            text = prompt(problem, config.task, tokenizer)
            lengths[problem.id] = len(prompt_ids(text, tokenizer))
        return lengths[problem.id]

    drawn = draw(config.task, config.seed, prompt_length)
    card = data_card(config.task, drawn, prompt_length) | {"config": _data_fingerprint(config)}
    with new_directory(target) as directory:
        write_problems(directory / "problems.jsonl", drawn.problems)
        write_json(directory / "card.json", card)
    return card


def problems_file(config: Shared) -> Path:
    """problems.jsonl: the pipeline's if it was drawn from this configuration, else the cache's, made at need."""
    wanted = _data_fingerprint(config)
    cached = CACHE / "data" / f"{config.task.name}-{wanted}"
    for directory in (Layout(Path()).data, cached):
        if _drawn_from(directory) == wanted:
            return directory / "problems.jsonl"
    prepare_problems(config, base_model(config.model), cached)
    return cached / "problems.jsonl"


def _drawn_from(directory: Path) -> str:
    card = directory / "card.json"
    return json.loads(card.read_text(encoding="utf-8")).get("config", "") if card.is_file() else ""


def _data_fingerprint(config: Shared) -> str:
    return fingerprint([asdict(config.task), config.seed, asdict(config.model)])
