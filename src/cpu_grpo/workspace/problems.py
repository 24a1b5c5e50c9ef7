"""The task's problems on disk: drawn once for a configuration, found again afterwards."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from cpu_grpo.config.schema import Shared
from cpu_grpo.engine.prefix import common_prefix
from cpu_grpo.errors import UserError
from cpu_grpo.files import fingerprint, held_object, new_directory, sha256, write_json
from cpu_grpo.models.loading import load_tokenizer
from cpu_grpo.tasks.card import data_card
from cpu_grpo.tasks.problems import Problem, of_split, write_problems
from cpu_grpo.tasks.prompts import prompt, prompt_ids
from cpu_grpo.tasks.splits import draw
from cpu_grpo.workspace.layout import CACHE, Layout
from cpu_grpo.workspace.models import base_model

PROBLEMS = "problems.jsonl"


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
        write_problems(directory / PROBLEMS, drawn.problems)
        card["sha256"] = sha256(directory / PROBLEMS)
        write_json(directory / "card.json", card)
    return card


def problems_file(config: Shared) -> Path:
    """problems.jsonl: the pipeline's if it was drawn from this configuration, else the cache's, made at need."""
    wanted = _data_fingerprint(config)
    own, cached = Layout(Path()).data, _cached_data(config, wanted)
    if _card(own).get("config") == wanted:
        if not _whole(own):
            raise UserError(f"{own / PROBLEMS} was altered or damaged since it was drawn: remove it, and `dvc repro`.")
        return own / PROBLEMS
    if not _whole(cached):
        prepare_problems(config, base_model(config.model), cached)
    return cached / PROBLEMS


def drawn_card(config: Shared) -> dict[str, Any]:
    """What card.json says of the problems, the pipeline's or the cache's; empty where none were drawn yet."""
    wanted = _data_fingerprint(config)
    cards = (_card(directory) for directory in (Layout(Path()).data, _cached_data(config, wanted)))
    return next((card for card in cards if card.get("config") == wanted), {})


def _cached_data(config: Shared, wanted: str) -> Path:
    return CACHE / "data" / f"{config.task.name}-{wanted}"


def _card(directory: Path) -> dict[str, Any]:
    """Empty where there is none, or where it is damaged."""
    return held_object(directory / "card.json")


def _whole(directory: Path) -> bool:
    """Whether the problems are there, as they were drawn."""
    path, card = directory / PROBLEMS, _card(directory)
    return path.is_file() and bool(card) and card.get("sha256", "") in ("", sha256(path))


def _data_fingerprint(config: Shared) -> str:
    """Stands for all that drawn problems depend on, the user's files with them."""
    path = Path(config.task.path)
    files = [path] if path.is_file() else sorted(path.glob("*.jsonl")) if config.task.path else []
    return fingerprint([asdict(config.task), config.seed, asdict(config.model), [sha256(file) for file in files]])
