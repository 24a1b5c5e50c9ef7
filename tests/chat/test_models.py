"""What names stand for, how models are asked, and what is said where there is none or too little memory."""

import json

import pytest
from omegaconf import OmegaConf

from conftest import ROOT
from cpu_grpo.chat import models as chat_models
from cpu_grpo.chat.models import PLAIN, named, require_memory
from cpu_grpo.config.schema import Example, Task
from cpu_grpo.errors import UserError
from cpu_grpo.plan.choice import Budget
from cpu_grpo.tasks.prompts import form, task_of


def forms(*names, **options):
    return [model.task.name for model in named(list(names), **options)]


def test_a_trained_model_is_asked_as_in_its_training_and_so_is_one_beside_it(models):
    assert forms("first") == ["sums"]
    assert forms("base") == [""]
    assert forms("base", "first") == ["sums", "sums"]
    assert named(["first"])[0].task.instruction == "Answer after ####."


def test_another_form_can_be_asked_for_or_none(models):
    assert forms("base", "first", plain=True) == ["", ""]
    assert named(["first"], plain=True)[0].task == PLAIN
    assert forms("first", "base", task="gsm8k") == ["gsm8k", "gsm8k"]
    assert forms("first", task="jsonl") == ["jsonl"]  # whose problems are not read


def test_a_record_that_tells_no_form_is_none(models):
    for asked in ({}, None, [], {"name": 3}, {"name": "x", "system": [], "template": "", "instruction": ""}):
        (models / "first" / "source.json").write_text(json.dumps({"asked": asked}))
        assert forms("first") == [""]


def test_a_form_is_kept_and_found_again():
    task = Task(name="t", system="s", template="{question}?", instruction="i", examples=[Example("q", "a")])
    found = task_of(json.loads(json.dumps(form(task))))
    assert found == task


def test_a_directory_is_a_model_too(models, tmp_path):
    (models / "first").rename(tmp_path / "elsewhere")
    assert named([str(tmp_path / "elsewhere")])[0].task.name == "sums"
    assert named(["elsewhere"])[0].directory.name == "elsewhere"


@pytest.mark.parametrize("name", ["nope", "", "models", "../models"])
def test_of_an_unknown_model_those_that_are_there_are_named(models, name):
    with pytest.raises(UserError, match=r"There is no model .*made are base, first\.$"):
        named([name])


def test_where_no_model_was_made_the_command_that_makes_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"base model has not been made: make it with `python pipelines/model\.py"):
        named(["base"])
    with pytest.raises(UserError, match="no model has been made here yet, which `dvc repro` does"):
        named(["first"])


def test_a_base_model_made_for_the_configuration_is_found_in_the_cache(models, tmp_path, tiny_directory):
    from cpu_grpo.config import load_params
    from cpu_grpo.workspace.models import base_model

    (models / "base").rename(tmp_path / "away")
    config = OmegaConf.load(ROOT / "params.yaml")
    config.model = {"name": "tiny", "source": "path", "path": str(tiny_directory)}
    OmegaConf.save(config, "params.yaml")
    made = base_model(load_params(chat_models.PARAMS).model)
    assert named(["base"])[0].directory == made


def test_memory_for_two_models_is_more_than_for_one_and_what_is_missing_is_told(models, monkeypatch):
    def room(size):
        monkeypatch.setattr(chat_models, "budget", lambda limit: Budget(size, f"{size} bytes are free"))

    one, two = [models / "base"], [models / "base", models / "first"]
    room(0)
    with pytest.raises(UserError, match=r"^The model needs 0\.\d+ GB, and 0 bytes are free: free some memory"):
        require_memory(one, 64, 4)
    with pytest.raises(UserError, match=r"^The two models need .*: ask them one at a time, or free some memory"):
        require_memory(two, 64, 4)
    enough = next(size for size in range(chat_models.LIBRARIES, 2**40, 2**16) if _fits(one, size, room))
    room(enough)
    with pytest.raises(UserError):
        require_memory(two, 64, 4)


def _fits(directories, size, room):
    room(size)
    try:
        require_memory(directories, 64, 4)
    except UserError:
        return False
    return True
