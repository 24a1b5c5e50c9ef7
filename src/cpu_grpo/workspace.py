"""Where a stage finds its inputs and puts its outputs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Model, Shared
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, new_directory, write_json
from cpu_grpo.models import load_tokenizer, model_record, prepare_model
from cpu_grpo.prefix import common_prefix
from cpu_grpo.tasks.card import data_card
from cpu_grpo.tasks.problems import Problem, of_split, write_problems
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
    if found := made_model("base", config):
        return found
    cached = _cached_model(config)
    prepare_model(config, cached)
    return cached


def made_model(name: str, config: Model) -> Path | None:
    """The directory of `base`, of a trained variant or of this name; None where it has not been made."""
    if name == "base":
        own, cached = Layout(Path()).model("base"), _cached_model(config)
        if model_record(own).get("config") == fingerprint(asdict(config)):
            return own
        return cached if model_record(cached) else None
    directories = (Layout(Path()).model(name), Path(name))
    return next((directory for directory in directories if (directory / "config.json").is_file()), None)


def _cached_model(config: Model) -> Path:
    return CACHE / "models" / f"{Path(config.name).name}-{fingerprint(asdict(config))}"


def find_model(name: str, config: Model) -> Path:
    """`base`, the name of a trained variant, or a directory.

    Raises:
        UserError: there is no such model yet.
    """
    if name == "base":
        return base_model(config)
    if found := made_model(name, config):
        return found
    raise UserError(
        f"The model {name} has not been trained: there is neither models/{name} nor a directory {name}; train it with "
        f"`dvc repro train@{name}`, or start from base."
    )


def prepare_problems(config: Shared, model_directory: Path, target: Path) -> dict[str, Any]:
    """Draws the task's problems into `target` (problems.jsonl and card.json). Returns the card."""
    tokenizer = load_tokenizer(model_directory)
    if not tokenizer.chat_template:
        print(f"notice: {config.model.name} has no chat template, so prompts are plain text (Question: ... Answer:).")
    encoded: dict[str, list[int]] = {}

    def prompt_length(problem: Problem) -> int:
        if problem.id not in encoded:
            encoded[problem.id] = prompt_ids(prompt(problem, config.task, tokenizer), tokenizer)
        return len(encoded[problem.id])

    drawn = draw(config.task, config.seed, prompt_length)
    card = data_card(config.task, drawn, prompt_length)
    # What a training run's prompts begin with is computed once, so plans must know of it.
    card["prompt_tokens_shared"] = common_prefix([encoded[problem.id] for problem in of_split(drawn.problems, "train")])
    card["config"] = _data_fingerprint(config)
    with new_directory(target) as directory:
        write_problems(directory / "problems.jsonl", drawn.problems)
        write_json(directory / "card.json", card)
    return card


def problems_file(config: Shared) -> Path:
    """problems.jsonl: the pipeline's if it was drawn from this configuration, else the cache's, made at need."""
    cached = _cached_data(config)
    if not drawn_card(config):
        prepare_problems(config, base_model(config.model), cached)
    own = Layout(Path()).data
    return (own if _card(own).get("config") == _data_fingerprint(config) else cached) / "problems.jsonl"


def drawn_card(config: Shared) -> dict[str, Any]:
    """What card.json says of the problems, the pipeline's or the cache's; empty where none were drawn yet."""
    cards = (_card(directory) for directory in (Layout(Path()).data, _cached_data(config)))
    return next((card for card in cards if card.get("config") == _data_fingerprint(config)), {})


def _cached_data(config: Shared) -> Path:
    return CACHE / "data" / f"{config.task.name}-{_data_fingerprint(config)}"


def _card(directory: Path) -> dict[str, Any]:
    card = directory / "card.json"
    return json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}


def _data_fingerprint(config: Shared) -> str:
    return fingerprint([asdict(config.task), config.seed, asdict(config.model)])
