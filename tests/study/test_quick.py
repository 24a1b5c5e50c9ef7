"""Studies as a user runs them, by their quick budget on a tiny model: jobs, what is not repeated, and the report."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cpu_grpo.config.compose import study_names
from cpu_grpo.report.studies import section

PIPELINES = Path(__file__).parents[2] / "pipelines"
# Of each study, arms that go ways of their own: stages that follow one another, other splits, trials, axes, engines.
ARMS = {
    "few_problems": "n5",
    "growth": "tokens_16",
    "hardware": "no_prefix_sharing",
    "progressive": "mix,curriculum",
    "recipes": "published_stage1",
    "schemes": "lora",
    "search": "trial",
}


def study(name, arms, model):
    """What the command says."""
    also = f"also='model=path model.path={model} task.examples=[] task.max_completion_length=4'"
    keys = [f"study={name}", "budget=quick", f"arm={arms}", also]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(PIPELINES / "study.py"), *keys]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_study_is_run_here():
    assert sorted(ARMS) == study_names()


@pytest.mark.parametrize("name", [name for name in ARMS if name != "progressive"])
def test_a_study_leaves_an_outcome_and_a_section(name, tiny_directory, workspace):
    said = study(name, ARMS[name], tiny_directory)
    assert f"{name}: {ARMS[name]} with seed 1 " in said
    (path,) = (workspace / "results" / "studies" / name / "quick").iterdir()
    outcome = json.loads(path.read_text())
    assert outcome["figures"]["updates"] >= 2 and outcome["runs"]
    assert {split: len(marks["right"]) for split, marks in outcome["marks"].items()} == {
        "few_problems": {"test": 16, "train": 5},
        "search": {"validation": 16},
        "growth": {},
        "hardware": {},
    }.get(name, {"test": 16})
    found = section(workspace, name)
    assert found.answers[0].startswith("Run with budget=quick only")
    assert "jobs are done; the others are not run yet" in " ".join(found.answers) or name == "search"
    assert found.table.rows


def test_a_study_that_is_repeated_goes_on_where_it_was(tiny_directory, workspace):
    folder = workspace / "results" / "studies" / "progressive" / "quick"
    assert "1 of 5 jobs done" in study("progressive", "mix", tiny_directory)
    before = (folder / "mix-1.json").read_bytes()
    said = study("progressive", "mix,curriculum", tiny_directory)
    assert "2 of 5 jobs done" in said and said.count("updates, reward") == 3  # the curriculum's three stages alone
    assert (folder / "mix-1.json").read_bytes() == before
    found = section(workspace, "progressive")
    assert any(answer.startswith("curriculum against mix: ") for answer in found.answers)
