"""Tasks whose answers are no numbers, from the user's file to rewards and marked results, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from cpu_grpo.tasks.answers.grader import Grader
from stages import command, run

pytestmark = pytest.mark.slow

QUESTIONS = [f"What is thing {number}?" for number in range(16)]


def write_problems(answers):
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    rows = [
        {"question": question, "answer": answer}
        if number % 2
        else {"messages": [*turns, {"role": "user", "content": question}], "answer": answer}
        for number, (question, answer) in enumerate(zip(QUESTIONS, answers, strict=True))
    ]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def keys(directory, kind):
    """Of any stage."""
    changes = {"task.answer": kind, "task.marks": "[boxed,'answer is']", "task.system": "Be brief."}
    changes |= {"task.template": "'{question} ({instruction})'", "task.instruction": "one word", "hydra.run.dir": "."}
    sizes = {"task.train": 8, "task.validation": 4, "task.test": 4, "task.max_completion_length": 4}
    given = {"model": "path", "model.path": directory, "task": "jsonl", "task.path": "mine.jsonl"}
    return [f"{key}={value}" for key, value in (given | sizes | changes).items()]


def evaluated(directory, kind):
    """The results of the base model, and their figures."""
    stage = [sys.executable, str(ROOT / "pipelines" / "evaluate.py"), "evaluation.models=[base]"]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*stage, *keys(directory, kind)], capture_output=True, text=True, check=False, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    results = Path("results/evaluate")
    rows = [json.loads(line) for line in (results / "base.jsonl").read_text().split("\n") if line]
    return rows, json.loads((results / "base.json").read_text())


@pytest.mark.parametrize(("kind", "wrong"), [("text", "nothing of the kind"), ("choice", "J")])
def test_a_task_of_words_is_evaluated_and_learnt_from(tiny_directory, workspace, kind, wrong):
    write_problems([wrong] * 16)
    rows, figures = evaluated(tiny_directory, kind)
    assert figures["accuracy"] == 0 and figures["n"] == 4
    assert all("Be brief." in row["prompt"] and "(one word)" in row["prompt"] for row in rows)
    # What the model says is declared right for half of the problems, as the second of two answers.
    said = {row["question"]: row["flexible"] for row in rows}
    right = [row["question"] for row in rows if row["flexible"]][:2]
    write_problems([[wrong, said[question]] if question in right else wrong for question in QUESTIONS])
    again, figures = evaluated(tiny_directory, kind)
    assert {row["question"]: row["flexible"] for row in again} == said
    assert [row["question"] for row in again if row["right"]] == [
        row["question"] for row in rows if row["question"] in right
    ]
    assert figures["accuracy"] == len(right) / 4

    write_problems([[wrong, "a", "b"]] * 16)
    learnt = {key: value for key, _, value in (own.partition("=") for own in keys(tiny_directory, kind))}
    learnt |= {"rewards.strict": 0.5, "tracking.samples_every": 1}
    arguments = command(tiny_directory, **{key: value for key, value in learnt.items() if key != "model"})
    write_problems([[wrong, "a", "b"]] * 16)
    done = run(arguments)
    assert done.returncode == 0, done.stderr
    assert f"notice: rewards.closeness compares numbers, so with task.answer={kind} it is 0 throughout." in done.stdout
    grader = Grader(kind, ("boxed", "answer is"))
    lines = Path("results/train/ultra_fast.samples.jsonl").read_text().split("\n")
    samples = [json.loads(line) for line in lines if line]
    assert samples
    for row in samples:
        assert row["closeness"] == 0
        assert row["correct"] == grader.same(grader.flexible(row["completion"]), [wrong, "a", "b"])
        assert row["strict"] == grader.same(grader.strict(row["completion"]), [wrong, "a", "b"])
