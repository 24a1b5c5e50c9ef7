"""Rows about the plan: what it tells of memory and time before a run, against what updates took."""

from pathlib import Path
from statistics import median

from bench import Bench, shape_of
from figures import Figure
from floors import Work
from processes import Json
from workers.update import LEAN_TOKENS, LORA_TOKENS

from cpu_grpo.engine.shape import stored_bytes
from cpu_grpo.hardware import DTYPES, Setup
from cpu_grpo.plan.job import Job
from cpu_grpo.plan.memory import Scheme, peak
from cpu_grpo.plan.rehearsal import rehearse
from cpu_grpo.plan.seconds import update_seconds
from rows.updates import asking

SCHEMES = {
    "ours": Scheme("full", recompute=False),
    "ours lean": Scheme("lean", recompute=True),
    "ours lora": Scheme("lora", recompute=True, rank=16, shared=True),
}
TOKENS = {"ours": 4096, "ours lean": LEAN_TOKENS, "ours lora": LORA_TOKENS}  # of a micro-batch
# Model, scheme, prompts, completion tokens; what other rows have run is taken from there.
RUNS = (
    ("135m", "ours", 8, 128, "update_135m"),
    ("135m", "ours", 1, 256, ""),
    ("135m", "ours lean", 4, 64, ""),
    ("135m", "ours lora", 2, 32, ""),
    ("494m", "ours", 1, 128, "memory_494m"),
    ("494m", "ours lean", 1, 128, "memory_494m"),
    ("494m", "ours lora", 1, 128, "memory_494m"),
)
MEMORY, TIME = 0.1, 0.2  # how far off the plan may be


def plan(bench: Bench, setup: Setup) -> list[Figure]:
    """Planned beside measured, for each of RUNS."""
    figures = []
    for model, engine, prompts, length, key in RUNS:
        work = bench.work(prompts, length)
        answers = bench.runs.get(key, {}).get(engine) or _run(bench, model, engine, work)
        figures += _compared(bench, setup, model, engine, work, answers)
    return figures


def _run(bench: Bench, model: str, engine: str, work: Work) -> list[Json]:
    key = f"plan_{model}_{engine}_{work.prompts}_{work.completion_tokens}".replace(" ", "_")
    return bench.measure(key, {engine: (bench.repeats, asking(bench, model, work, engine))})[engine]


def _compared(bench: Bench, setup: Setup, model: str, engine: str, work: Work, answers: list[Json]) -> list[Figure]:
    scheme, job = SCHEMES[engine], _job(engine, work)
    workload = f"{scheme.name}, {bench.describe(model, work)}"
    titles = ("memory, planned against measured", "time of an update, planned against measured")
    if not answers:
        return [Figure(title, workload) for title in titles]
    shape = shape_of(answers)
    stored = stored_bytes(Path(bench.base)) if bench.base and model == "135m" else 0  # others are made in memory
    planned = peak(shape, job, scheme, DTYPES[setup.precision].itemsize, stored).total / 1e9
    held = max(answer["peak_rss_bytes"] for answer in answers) / 1e9
    costs = rehearse(shape, job, scheme, setup.precision, setup.threads)
    expected = update_seconds(shape, job, costs).update
    took = median(second for answer in answers for second in answer["seconds"])
    return [
        _figure(titles[0], workload, held, planned, "GB", MEMORY),
        _figure(titles[1], workload, took, expected, "s", TIME),
    ]


def _job(engine: str, work: Work) -> Job:
    """An update as measure_update.py makes it."""
    return Job(
        prompts=work.prompts,
        group=work.completions,
        prompt_tokens=work.prompt_tokens,
        completion_tokens=work.completion_tokens,
        micro_batch=work.completions if engine == "ours" else work.sequences,
        micro_batch_tokens=TOKENS[engine],
        rows=128,
        updates=1,
    )


def _figure(measure: str, workload: str, measured: float, planned: float, unit: str, goal: float) -> Figure:
    off = abs(planned / measured - 1)
    return Figure(
        measure, workload, ours=measured, other=planned, unit=unit, value=off, value_unit="%", goal=goal, at_most=True
    )
