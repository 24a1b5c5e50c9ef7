"""The commands of docs/tracking.md do what it says."""

import re
import shlex

import pytest

from conftest import ROOT
from cpu_grpo.config.compose import compose_pipeline, compose_run, typed
from cpu_grpo.config.schema import Pipeline

PAGE = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def commands(start):
    return [shlex.split(line.removeprefix(start)) for line in COMMANDS if line.startswith(start)]


@pytest.mark.parametrize("keys", commands("python pipelines/train.py"))
def test_the_keys_of_a_training_are_keys(keys):
    assert compose_run(keys).tracking != compose_run([]).tracking


@pytest.mark.parametrize("keys", commands("python pipelines/compose.py"))
def test_the_keys_of_a_pipeline_are_keys(keys):
    assert typed(compose_pipeline(keys), Pipeline).tracking.also == ["tensorboard", "wandb"]
