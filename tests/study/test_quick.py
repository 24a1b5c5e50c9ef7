"""Studies as a user runs them, by their quick budget on a tiny model: jobs, what is not repeated, and the report."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cpu_grpo.config.compose import compose_pipeline, compose_run, compose_study, study_names, typed
from cpu_grpo.config.schema import Pipeline
from cpu_grpo.report.studies import section
from cpu_grpo.study import jobs

pytestmark = pytest.mark.slow

PIPELINES = Path(__file__).parents[2] / "pipelines"
# Of each study, arms that go ways of their own: stages that follow one another, other splits, trials, axes, engines.
ARMS = {
    "few_problems": "n5",
    "growth": "tokens_16",
    "gsm8k": "supervised",
    "hardware": "no_prefix_sharing",
    "progressive": "after_level_1,curriculum",
    "recipes": "published_stage1",
    "schemes": "lora",
    "search": "trial",
}


def tiny(model):
    """Keys that make every training and evaluation small."""
    return f"model=path model.path={model} task.examples=[] task.max_completion_length=4"


def gsm8k(folder):
    """Keys that read a few problems in GSM8K's form, which this writes."""
    folder.mkdir()
    for more, split in enumerate(("train", "test"), start=1):
        sums = [(f"{n} + {more}", n + more) for n in range(60)]
        rows = [
            {"question": f"{asked}?", "answer": f"<<{asked}={found}>>{found}\\n#### {found}"} for asked, found in sums
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f" task.path={folder} task.train=40 task.validation=20 task.test=20"


def study(name, arms, model):
    """What the command says."""
    keys = [f"study={name}", "budget=quick", f"arm={arms}", f"also='{tiny(model)}'"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(PIPELINES / "study.py"), *keys]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def in_process(monkeypatch):
    """A job's stages run inside this process, which spares their imports, most of their time here."""
    train, evaluate = (runpy.run_path(str(PIPELINES / f"{stage}.py"))[stage] for stage in ("train", "evaluate"))

    def run(config, stage, keys, directory):
        directory.mkdir(parents=True, exist_ok=True)
        if stage == "train":
            train(compose_run(keys), directory, "")
        else:
            evaluate(typed(compose_pipeline(keys), Pipeline), directory, "")

    monkeypatch.setattr(jobs, "_run", run)


def test_every_study_is_run_here():
    assert sorted(ARMS) == study_names()


@pytest.mark.parametrize("name", [name for name in ARMS if name != "progressive"])
def test_a_study_leaves_an_outcome_and_a_section(name, tiny_directory, workspace, in_process, capsys):
    data = gsm8k(workspace / "gsm8k") if name == "gsm8k" else ""
    job = replace(compose_study(name, "quick"), arm=ARMS[name], also=tiny(tiny_directory) + data)
    runpy.run_path(str(PIPELINES / "study.py"))["study"](job, workspace / "jobs", "")
    assert f"{name}: {ARMS[name]} with seed 1 " in capsys.readouterr().out
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
    """The command itself; the curriculum begins with what the arm after its first stage has trained."""
    folder = workspace / "results" / "studies" / "progressive" / "quick"
    assert "1 of 5 jobs done" in study("progressive", "after_level_1", tiny_directory)
    before = (folder / "after_level_1-1.json").read_bytes()
    said = study("progressive", "after_level_1,curriculum", tiny_directory)
    assert "2 of 5 jobs done" in said and said.count("updates, reward") == 2  # the curriculum's later stages alone
    assert (folder / "after_level_1-1.json").read_bytes() == before
    found = section(workspace, "progressive")
    assert any(answer.startswith("On level 1 alone, curriculum against after_level_1: ") for answer in found.answers)
