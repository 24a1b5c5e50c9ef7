"""Rows about whole training runs: the default job's use of the CPU, and the time until a model is so good."""

import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import floors
from bench import Bench, shape_of
from figures import Figure, absolute
from floors import Work
from processes import Json, ask
from workers.accuracy import COMPLETIONS, PROMPTS, TOKENS, write_sums

from cpu_grpo.experiment.statistics import wilson

ACCURACY = 0.43  # what a plain transformers loop reached in 231 s, from 17 % without worked examples
MOST_UPDATES = 40


def cpu_use(results: Path) -> list[Figure]:
    """CPU time over wall time and cores of each variant that `make repro` has trained: not measured by this call."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return [
        absolute(
            f"CPU use of a training run, {figures['variant']}",
            f"default job, {figures['updates']} updates",
            figures["cpu_use"],
            "%",
            bound=1.0,
            goal=0.95,
            note=f"engine {figures.get('engine', 'unknown')}; read from {results.as_posix()}",
        )
        for figures in found
    ] or [Figure("CPU use of a training run", "default job", goal=0.95, note="make repro has not been run here")]


def time_to_accuracy(bench: Bench) -> list[Figure]:
    """Training seconds from a process's start until the held-out accuracy is reached; each repeat has its own seed."""
    seeds = itertools.count()
    with tempfile.TemporaryDirectory() as scratch:
        problems = Path(scratch) / "problems.jsonl"
        write_sums(problems, bench.quick)
        task = bench.task("135m") | {"problems": str(problems), "accuracy": ACCURACY}

        def ours() -> Json:
            with tempfile.TemporaryDirectory() as cache:  # without kernels that are compiled already
                most = 2 if bench.quick else MOST_UPDATES
                run = task | {"seed": next(seeds), "most_updates": most, "started": time.time()}
                return ask("accuracy", run, XDG_CACHE_HOME=cache)

        def base() -> Json:
            return ask("accuracy", task | {"seed": 0, "most_updates": 0, "started": time.time()})

        runs = bench.measure("time_to_accuracy", {"base": (1, base), "ours": (bench.repeats, ours)})
    workload = f"{PROMPTS} x {COMPLETIONS} x up to {TOKENS} tokens an update, sums of 2 or 3 one-digit numbers"
    if not (runs["ours"] and runs["base"]):
        return [Figure("time to accuracy", workload)]
    reached = [answer for answer in runs["ours"] if answer["seconds"] is not None]
    seconds = median(answer["seconds"] for answer in reached) if len(reached) == len(runs["ours"]) else None
    return [
        absolute(
            f"time to {ACCURACY:.1%} of held-out problems",
            f"{bench.describe_model('135m')}, {workload}",
            seconds,
            "s",
            bound=median(_bound(bench, answer) for answer in reached) if seconds else None,
            goal=30,
            at_most=True,
            missing="not reached",
            note=f"before: {_accuracy(runs['base'][0])}; " + "; ".join(_course(answer) for answer in runs["ours"]),
        )
    ]


def _bound(bench: Bench, answer: Json) -> float:
    """The floor of the updates that it took; loading and compiling have none."""
    work = Work(PROMPTS, COMPLETIONS, int(answer["prompt_tokens"]), max(1, int(answer["completion_tokens"])))
    return answer["updates"] * floors.update_seconds(shape_of([answer]), work, bench.rates)


def _accuracy(answer: Json) -> str:
    right, n = answer["right"][-1], answer["n"]
    interval = wilson(right, n)
    return f"{right / n:.1%} [{interval.low:.1%}, {interval.high:.1%}] of {n}"


def _course(answer: Json) -> str:
    """What one run came to."""
    end = f"after {answer['updates']} updates and {answer['training_seconds'][-1]:.1f} s"
    return f"{_accuracy(answer)} {end}, evaluations apart ({answer['evaluation_seconds']:.1f} s)"
