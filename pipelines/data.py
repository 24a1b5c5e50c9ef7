"""Draws the task's problems and their data card: data/problems.jsonl and data/card.json."""

from pathlib import Path

from cpu_grpo.config import Pipeline, launch
from cpu_grpo.workspace.layout import Layout
from cpu_grpo.workspace.models import base_model
from cpu_grpo.workspace.problems import prepare_problems


def data(config: Pipeline, root: Path, pipeline_id: str) -> None:
    card = prepare_problems(config, base_model(config.model), Layout(root).data)
    counts = ", ".join(f"{split['problems']} {name}" for name, split in card["splits"].items())
    left_out = ", ".join(f"{count} {reason}" for reason, count in card["left_out"].items())
    print(f"{Layout(root).data / 'problems.jsonl'}: {counts} (left out: {left_out})")


if __name__ == "__main__":
    launch(data)
