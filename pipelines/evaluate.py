"""Evaluates models on held-out problems: results/evaluate/<model>.json and, problem by problem, .jsonl."""

from pathlib import Path

from cpu_grpo.config import Pipeline, launch
from cpu_grpo.errors import UserError
from cpu_grpo.experiment.evaluation import evaluate_model, held_out, rows
from cpu_grpo.experiment.tracking import start_run
from cpu_grpo.files import fingerprint, sha256, write_jsonl, write_sealed
from cpu_grpo.models.integrity import intact_hash
from cpu_grpo.tasks.problems import read_problems
from cpu_grpo.units import duration, gigabytes
from cpu_grpo.workspace.layout import Layout
from cpu_grpo.workspace.models import find_model
from cpu_grpo.workspace.problems import problems_file


def evaluate(config: Pipeline, root: Path, pipeline_id: str) -> None:
    for name in config.evaluation.models:
        evaluate_one(config, name, Layout(root), pipeline_id)


def evaluate_one(config: Pipeline, model: str, layout: Layout, pipeline_id: str) -> None:
    directory, data = find_model(model, config.model), problems_file(config)
    problems = held_out(config, read_problems(data))
    if not problems:
        raise UserError(f"The {config.evaluation.split} split is empty: raise task.{config.evaluation.split}.")
    name = Path(model).name
    tags = {"evaluated": name, "variant": name, "model": config.model.name, "task": config.task.name}
    tags |= {"data_hash": fingerprint(sha256(data)), "model_hash": intact_hash(directory)}
    with start_run(config, f"evaluate {name}", "evaluate", pipeline_id, tags) as run:
        run.params(config)
        results, figures = evaluate_model(config, directory, problems)
        about = {"model": model, "model_hash": tags["model_hash"], "task": config.task.name}
        about |= {"split": config.evaluation.split}
        figures = about | figures | {"mlflow_run_id": run.run_id}
        answers = layout.evaluation / f"{name}.jsonl"
        write_jsonl(answers, rows(results))
        write_sealed(answers.with_suffix(".json"), figures | {"sha256.jsonl": sha256(answers)})
        run.metrics({key: value for key, value in figures.items() if isinstance(value, float | int)}, 0)
        run.artifact(answers)
        run.table(rows(results)[:50], "completions.json")
    print(
        f"{name}: {figures['extraction']} accuracy {figures['accuracy']:.1%} "
        f"[{figures['accuracy_low']:.1%}, {figures['accuracy_high']:.1%}] on {figures['n']} {figures['split']} problems"
    )
    if expected := figures.get("expected_answer_seconds"):
        print(
            f"{name}: {gigabytes(figures['peak_rss_bytes'])} of memory; {duration(figures['answer_seconds'])} for the "
            f"answers, {duration(expected)} by the plan for answers of their lengths"
        )


if __name__ == "__main__":
    launch(evaluate)
