"""The stages as a user runs them, end to end on a tiny model, and what they say to bad input."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from omegaconf import OmegaConf
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def run(stage, *arguments):
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(ROOT / "pipelines" / f"{stage}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def must(stage, *arguments):
    done = run(stage, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def own_problems(workspace):
    path = workspace / "mine.jsonl"
    lines = [{"question": f"{a} + {b} =", "answer": a + b} for a in range(8) for b in range(8)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def params(own_problems, tiny_directory, workspace):
    """A params.yaml of a two-variant chain on the tiny model."""
    config = OmegaConf.load(ROOT / "params.yaml")
    config.model = {"name": "tiny", "source": "path", "path": str(tiny_directory)}
    sizes = {"train": 16, "validation": 8, "test": 20, "max_completion_length": 4}
    config.task = {"name": "mine", "kind": "jsonl", "path": str(own_problems)} | sizes
    trainer = {"max_steps": 2, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 4}
    trainer |= {"learning_rate": 1e-3}
    rewards = {"correct": 1.0, "digits": 0.5}
    config.variants = {
        "first": {"name": "first", "init_from": "base", "trainer": trainer, "rewards": rewards},
        "second": {"name": "second", "init_from": "first", "trainer": trainer | {"beta": 0.1}, "rewards": rewards},
    }
    config.evaluation = {"models": ["base", "first", "second"]}
    OmegaConf.save(config, workspace / "params.yaml")
    return workspace


def test_the_whole_chain(params):
    """model -> data -> train -> train from it -> evaluate all -> report, with everything a user looks at."""
    for arguments in (
        ("model", "--params", "params.yaml"),
        ("data", "--params", "params.yaml"),
        ("train", "--params", "params.yaml", "--variant", "first"),
        ("train", "--params", "params.yaml", "--variant", "second"),
        *(("evaluate", "--params", "params.yaml", "--model", name) for name in ("base", "first", "second")),
        ("report", "--params", "params.yaml"),
    ):
        must(*arguments)

    card = json.loads((params / "data" / "card.json").read_text())
    assert [card["splits"][split]["problems"] for split in ("train", "validation", "test")] == [16, 8, 20]

    with (params / "results" / "train" / "second.csv").open() as stream:
        history = list(csv.DictReader(stream))
    assert [row["step"] for row in history] == ["1", "2"]
    logged = {
        "reward",
        "reward_std",
        "correct",
        "digits",
        "no_spread_share",
        "clipped_share",
        "completion_length",
        "loss",
    }
    logged |= {
        "grad_norm",
        "entropy",
        "kl",
        "clip_ratio",
        "learning_rate",
        "completions_per_second",
        "tokens_per_second",
    }
    assert logged | {"rss_bytes", "cpu_use"} <= set(history[0])

    figures = json.loads((params / "results" / "evaluate" / "second.json").read_text())
    rows = [json.loads(line) for line in (params / "results" / "evaluate" / "second.jsonl").read_text().splitlines()]
    assert figures["n"] == len(rows) == 20
    assert figures["accuracy"] == sum(row["right"] for row in rows) / 20
    assert figures["accuracy_low"] <= figures["accuracy"] <= figures["accuracy_high"]

    source = json.loads((params / "models" / "second" / "source.json").read_text())
    assert source["origin"] == "variant second from first" and source["asked"]["name"] == "mine"
    report = (params / "reports" / "report.html").read_text()
    assert all(name in report for name in ("base", "first", "second"))
    metrics = json.loads((params / "reports" / "metrics.json").read_text())
    assert metrics["second"]["accuracy"] == figures["accuracy"]

    client = MlflowClient(f"sqlite:///{(params / 'mlflow.db').as_posix()}")
    run = client.get_run(figures["mlflow_run_id"])
    assert run.info.status == "FINISHED" and run.data.metrics["accuracy"] == figures["accuracy"]


def test_a_sweep_leaves_comparable_runs_below_one_parent_and_a_summary(own_problems, tiny_directory, workspace):
    shown = must(
        "train",
        "-m",
        "variant=ultra_fast,extreme_fast",
        "model=path",
        f"model.path={tiny_directory}",
        "task=jsonl",
        f"task.path={own_problems}",
        "task.train=16",
        "task.validation=8",
        "task.test=8",
        "trainer.max_steps=2",
        "trainer.per_device_train_batch_size=16",
        "trainer.max_completion_length=4",
    )
    summary = next((workspace / "multirun").rglob("summary.md")).read_text()
    for name in ("ultra_fast", "extreme_fast"):
        assert name in shown and name in summary
    client = MlflowClient(f"sqlite:///{(workspace / 'mlflow.db').as_posix()}")
    experiment = client.get_experiment_by_name("cpu-grpo").experiment_id
    jobs = client.search_runs([experiment], "tags.stage = 'train'")
    assert sorted(job.data.tags["variant"] for job in jobs) == ["extreme_fast", "ultra_fast"]
    assert len({job.data.tags["mlflow.parentRunId"] for job in jobs}) == 1
    assert all({"reward", "grad_norm", "tokens_per_second"} <= set(job.data.metrics) for job in jobs)
    reasons = [reason for job in jobs for reason in job.data.tags["hardware"].splitlines()]
    assert {reason.split()[0] for reason in reasons} == {"threads", "precision"}
    assert all(f"hardware: {reason}\n" in shown for reason in reasons)


@pytest.mark.parametrize("scheme", ["lean", "lora"])
def test_memory_schemes_leave_a_model_of_half_the_size_that_evaluates(own_problems, tiny_directory, workspace, scheme):
    common = ["model=path", f"model.path={tiny_directory}", "task=jsonl", f"task.path={own_problems}"]
    common += ["task.train=16", "task.validation=8", "task.test=8", "task.max_completion_length=2"]
    sizes = ["trainer.max_steps=2", "trainer.per_device_train_batch_size=16", "trainer.max_completion_length=4"]
    must("train", "variant=ultra_fast", f"memory={scheme}", "trainer.learning_rate=0.01", *common, *sizes)
    figures = json.loads(next((workspace / "outputs").rglob("ultra_fast.json")).read_text())
    assert figures["memory"] == scheme
    trained = next((workspace / "outputs").rglob("models/ultra_fast"))
    small, large = (directory / "model.safetensors" for directory in (trained, tiny_directory))
    assert small.stat().st_size < 0.6 * large.stat().st_size
    before, after = load_file(large), load_file(small)
    assert before.keys() == after.keys()
    moved = [name for name, weight in after.items() if not weight.equal(before[name].bfloat16())]
    assert len(moved) == len(after) if scheme == "lean" else all("_proj" in name for name in moved) and len(moved) == 14
    assert json.loads((trained / "source.json").read_text())["recipe"]["memory"]["scheme"] == scheme
    assert "ultra_fast: " in must("evaluate", *common, f"evaluation.models=[{trained}]")
    assert (trained / "adapter").exists() == (scheme == "lora")
    if scheme == "lora":
        adapters_give(before, trained / "adapter", after, tiny_directory)


def adapters_give(before, directory, after, base):
    """Adapters apart, added to the weights before training, are the weights after it, but for rounding."""
    from peft import PeftModel

    from cpu_grpo.models.loading import load_weights

    whole = PeftModel.from_pretrained(load_weights(base), directory).merge_and_unload().state_dict()
    far = [name for name in after if (whole[name] - after[name]).abs().max() > 2**-7 * after[name].abs().max()]
    assert not far
    assert any((whole[name] - before[name]).abs().max() > 1e-4 for name in before if "_proj" in name)


def test_a_model_without_a_chat_template_gets_plain_prompts_and_a_notice(own_problems, tiny_directory, workspace):
    import shutil

    plain = shutil.copytree(tiny_directory, workspace / "plain")
    (plain / "chat_template.jinja").unlink()
    shown = must(
        "evaluate",
        "model=path",
        f"model.path={plain}",
        "task=jsonl",
        f"task.path={own_problems}",
        "task.train=8",
        "task.validation=8",
        "task.test=8",
        "task.max_completion_length=2",
        "evaluation.models=[base]",
    )
    assert "no chat template, so prompts are plain text" in shown
    row = json.loads(next((workspace / "outputs").rglob("base.jsonl")).read_text().splitlines()[0])
    assert row["prompt"].startswith("Question: ") and row["prompt"].endswith("\nAnswer:")


def bad_json(path):
    path.write_text('{"question": "1 + 1 =", "answer": 2}\n{"question": \n')


def lacks_a_field(path):
    path.write_text('{"question": "1 + 1 =", "answer": 2}\n\n{"question": "1 + 2 ="}\n')


def too_few(path):
    path.write_text('{"question": "1 + 1 =", "answer": 2}\n')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (bad_json, "mine.jsonl, line 2 is not JSON"),
        (lacks_a_field, 'mine.jsonl, line 3 has no field "answer": add it.'),
        (too_few, "task.train=500 asks for more than the 1 problems left for that split"),
        (lambda path: path.unlink(), "There is no file"),
    ],
)
def test_bad_problems_stop_the_data_stage_with_one_sentence(own_problems, tiny_directory, workspace, spoil, sentence):
    spoil(own_problems)
    done = run("data", "model=path", f"model.path={tiny_directory}", "task=jsonl", f"task.path={own_problems}")
    refused(done, sentence)
    assert not list(workspace.rglob("problems.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("train", "variant=fastest"), "There is no variant called fastest: use one of"),
        (("train", "task=algebra"), "There is no task called algebra: use one of"),
        (
            ("train", "trainer.learning_rat=1"),
            "trainer.learning_rat is not a configuration key: did you mean learning_rate?",
        ),
        (("train", "trainer.learning_rate=fast"), "trainer.learning_rate: Value 'fast' of type 'str'"),
        (("train", "trainer.num_generations=1"), "trainer.num_generations=1 is too small: use 2 or more"),
        (("train", "trainer.num_generations=7"), "trainer.num_generations=7 does not divide the batch of"),
        (("model", "model=path", "model.path=nowhere"), "There is no model directory nowhere: check the path."),
        (("model", "model=gguf", "model.path=nowhere.gguf"), "There is no file nowhere.gguf: correct model.path."),
        (("model", "--params", "none.yaml"), "There is no file none.yaml: write it with"),
        (("evaluate", "evaluation.models=[ultra_faster]"), "evaluation.models=ultra_faster is neither base, a variant"),
    ],
)
def test_bad_arguments_stop_a_stage_with_one_sentence(workspace, arguments, sentence):
    refused(run(*arguments), sentence)
    assert not list(workspace.rglob("*.safetensors"))


def test_a_variant_whose_start_is_not_trained_says_what_to_do(own_problems, tiny_directory, workspace):
    done = run("train", "variant=stage2", "model=path", f"model.path={tiny_directory}")
    refused(done, "The model stage1 has not been trained")


def test_too_few_problems_for_one_update(params):
    done = run("train", "--params", "params.yaml", "--variant", "third")
    refused(done, "third is not a variant of this pipeline: use one of first, second.")
    config = OmegaConf.load("params.yaml")
    config.variants.first.problems = 1
    OmegaConf.save(config, "params.yaml")
    done = run("train", "--params", "params.yaml", "--variant", "first")
    refused(done, "Variant first has 1 training problems (levels all, problems 1, copies 1) and one update takes 2")
    assert not list(Path().rglob("first*"))


def refused(done, sentence):
    assert done.returncode == 1
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and sentence in told[0], done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(workspace, tiny_directory, monkeypatch, capsys):
    import errno

    from cpu_grpo.config import launch
    from cpu_grpo.models import sources
    from cpu_grpo.workspace.layout import Layout

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    def stage(config, root, pipeline_id):
        sources.prepare_model(config.model, Layout(Path()).model("base"))

    monkeypatch.setattr(sources.shutil, "copyfile", full)
    monkeypatch.setattr(sys, "argv", ["model.py", "model=path", f"model.path={tiny_directory}"])
    with pytest.raises(SystemExit) as stopped:
        launch(stage)
    assert stopped.value.code == 1
    assert "error: No space is left on the disk (models/.base." in capsys.readouterr().err
    assert list((workspace / "models").iterdir()) == []
