"""Rows about memory: the peak of whole updates and of the default job in fresh processes, by scheme, and what a scheme
costs in speed."""

import json
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from bench import Bench
from figures import Figure, absolute
from processes import Json, ask

from rows.updates import asking

SCHEMES = {
    "ours": "full: fp32, AdamW",
    "ours lean": "lean: bf16, updated within backward",
    "ours lora": "LoRA of rank 16 on bf16",
}

JOB = ["variant=ultra_fast"]  # the largest of the default job's
JOB_GOALS = {"full": None, "lean": 1.5, "lora": 1.5}  # GB at most
JOB_SETTINGS = {"lora": ["trainer.learning_rate=5e-4"]}  # the rate that was chosen for it


def memory(bench: Bench, model: str, goals: dict[str, float | None], speed: float | None = None) -> list[Figure]:
    """Peak memory of updates of one prompt by each scheme, and the lean scheme's speed as a share of the full one's.

    Args:
        goals: GB at most, of the schemes to be measured.
        speed: the share that the lean scheme should reach; None: the full one is not measured.
    """
    work = bench.work(1)
    engines = {name: (bench.repeats, asking(bench, model, work, name)) for name in goals}
    runs = bench.measure(f"memory_{model}", engines)
    figures = [_peak(bench, model, name, runs[name], goal) for name, goal in goals.items()]
    if speed is None:
        return figures
    seconds = {name: [second for answer in answers for second in answer["seconds"]] for name, answers in runs.items()}
    lean, full = (median(seconds[name]) if seconds[name] else None for name in ("ours lean", "ours"))
    share = full / lean if lean and full else None
    workload = bench.describe(model, work)
    return [
        *figures,
        Figure("speed, lean by full", workload, ours=lean, other=full, value=share, value_unit="%", goal=speed),
    ]


def lean_throughput(bench: Bench, model: str, most: float, goal: float) -> list[Figure]:
    """Completions a second of the lean scheme's updates of 4 prompts, and that they stay below `most` GB."""
    work = bench.work(4)
    runs = bench.measure(f"lean_{model}", {"ours lean": (bench.repeats, asking(bench, model, work, "ours lean"))})
    answers = runs["ours lean"]
    rate = work.sequences / median(s for answer in answers for s in answer["seconds"]) if answers else None
    workload, titles = bench.describe(model, work), ("all parameters, peak memory", "all parameters, absolute")
    return [
        absolute(titles[0], workload, _most(answers, "peak_rss_bytes"), "GB", goal=most, at_most=True),
        absolute(titles[1], workload, rate, "completions/s", goal=goal),
    ]


def _peak(bench: Bench, model: str, engine: str, answers: list[Json], goal: float | None) -> Figure:
    return absolute(
        f"peak memory of an update, {SCHEMES[engine]}",
        bench.describe(model, bench.work(1)),
        _most(answers, "peak_rss_bytes"),
        "GB",
        goal=goal,
        at_most=True,
        note="of the whole process, its libraries included",
    )


def _most(answers: list[Json], key: str) -> float | None:
    """GB: the most of the answers' bytes."""
    return max((answer[key] / 1e9 for answer in answers), default=None)


def default_job(bench: Bench) -> list[Figure]:
    """Peak memory of the default job's training by each scheme: all of its updates, as what a run keeps may grow."""
    with tempfile.TemporaryDirectory() as scratch:
        task = (_tiny_job if bench.quick else _job)(bench, Path(scratch))
        engines = {
            scheme: (1, partial(ask, "training_run", task | {"training": [*task["training"], *_scheme(scheme)]}))
            for scheme in JOB_GOALS
        }
        runs = bench.measure("memory_default_job", engines)
    return [
        absolute(
            f"peak memory of a training run, memory={scheme}",
            f"default job, {'tiny stand-in' if bench.quick else 'ultra_fast'}, {_updates(runs[scheme])} updates",
            _most(runs[scheme], "peak_bytes"),
            "GB",
            goal=goal,
            at_most=True,
            note=f"all processes of pipelines/train.py; in {runs[scheme][0]['precision']}" if runs[scheme] else "",
        )
        for scheme, goal in JOB_GOALS.items()
    ]


def _scheme(scheme: str) -> list[str]:
    return [f"memory={scheme}", *JOB_SETTINGS.get(scheme, [])]


def _updates(answers: list[Json]) -> str:
    return str(answers[0]["updates"]) if answers else "no"


def _job(bench: Bench, scratch: Path) -> Json:
    """The task of a run of the default job that finds its base model in `scratch`."""
    (scratch / "models").mkdir()
    (scratch / "models" / "base").symlink_to(bench.base, target_is_directory=True)
    return {"directory": str(scratch), "settings": [], "training": JOB}


def _tiny_job(bench: Bench, scratch: Path) -> Json:
    """The same with a tiny model and problems that need no drawing."""
    model, problems = scratch / "tiny", scratch / "problems.jsonl"
    ask("saved_model", bench.task("135m") | {"directory": str(model), "groups": []})
    problems.write_text("".join(json.dumps({"question": f"{n} + 1 =", "answer": n + 1}) + "\n" for n in range(64)))
    (scratch / "data").mkdir()  # none are drawn before
    settings = ["model=path", f"model.path={model}", "task=jsonl", f"task.path={problems}"]
    settings += [f"task.{split}=8" for split in ("train", "validation", "test")]
    sizes = ["per_device_train_batch_size=8", "num_generations=4", "max_completion_length=4"]
    return {
        "directory": str(scratch),
        "settings": settings,
        "training": [*JOB, *(f"trainer.{size}" for size in ["max_steps=2", *sizes])],
    }
