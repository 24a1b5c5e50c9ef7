"""The commands of docs/tracking.md do what it says."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import ROOT
from cpu_grpo.config.compose import compose_pipeline, compose_run, typed
from cpu_grpo.config.schema import Pipeline
from stages import command, run

PAGE = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def commands(start):
    return [shlex.split(line.removeprefix(start), comments=True) for line in COMMANDS if line.startswith(start)]


@pytest.mark.parametrize("keys", commands("python pipelines/train.py"))
def test_the_keys_of_a_training_are_keys(keys):
    assert compose_run(keys).tracking != compose_run([]).tracking


@pytest.mark.parametrize("keys", commands("python pipelines/compose.py"))
def test_the_keys_of_a_pipeline_are_keys(keys):
    assert typed(compose_pipeline(keys), Pipeline).tracking.also == ["tensorboard", "wandb"]


@pytest.mark.slow
def test_a_training_as_the_page_has_it(workspace, tiny_directory):
    pytest.importorskip("tensorboard")
    done = run(command(tiny_directory, **{"tracking.also": "[tensorboard]", "tracking.register": "true"}))
    assert done.returncode == 0, done.stderr
    (directory,) = Path("logs/tensorboard").iterdir()
    assert directory.name.startswith("ultra_fast-") and list(directory.glob("events.*"))
    client = MlflowClient("sqlite:///mlflow.db")
    (version,) = client.search_model_versions("name = 'ultra_fast'")
    figures = json.loads(Path("results/train/ultra_fast.json").read_text())
    assert version.run_id == figures["mlflow_run_id"] and version.tags["variant"] == "ultra_fast"
    ((code,),) = commands("python -c ")
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.startswith("[")
