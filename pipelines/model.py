"""Turns the configured model source into a local directory: models/base."""

from pathlib import Path

from cpu_grpo.config import Pipeline, launch
from cpu_grpo.models.sources import prepare_model
from cpu_grpo.workspace.layout import Layout


def model(config: Pipeline, root: Path, pipeline_id: str) -> None:
    target = Layout(root).model("base")
    record = prepare_model(config.model, target)
    print(f"{target}: {record['origin']} {record['revision']}".strip())


if __name__ == "__main__":
    launch(model)
